"""Pydantic AI: an agent with a tool, and a tool that asks another agent."""

from __future__ import annotations

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from agentlightning.types import LLM


async def run(llm: LLM, question: str, *, stream: bool) -> str:
    model = OpenAIChatModel(llm.model, provider=OpenAIProvider(base_url=llm.base_url, api_key=llm.api_key))
    critic = Agent(model, name="critic")
    writer = Agent(model, name="writer")

    @critic.tool_plain
    def triple(x: int) -> int:
        """Triples a number."""
        return 3 * x

    @writer.tool_plain
    def double(x: int) -> int:
        """Doubles a number."""
        return 2 * x

    @writer.tool_plain
    async def ask_critic(request: str) -> str:
        """Asks the critic."""
        return (await critic.run(request)).output

    if stream:
        async with writer.run_stream(question) as result:
            return await result.get_output()
    return (await writer.run(question)).output
