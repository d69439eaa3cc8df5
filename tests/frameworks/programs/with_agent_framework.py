"""Microsoft Agent Framework: an agent with a tool, and another agent as a tool."""

from __future__ import annotations

from agent_framework import Agent
from agent_framework.openai import OpenAIChatCompletionClient

from agentlightning.types import LLM


def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


def triple(x: int) -> int:
    """Triples a number."""
    return 3 * x


async def run(llm: LLM, question: str, *, stream: bool) -> str:
    client = OpenAIChatCompletionClient(model=llm.model, base_url=llm.base_url, api_key=llm.api_key)
    critic = Agent(client=client, name="critic", tools=[triple], description="Checks an answer.")
    writer = Agent(client=client, name="writer", tools=[double, critic.as_tool(name="ask_critic", arg_name="request")])
    if not stream:
        return (await writer.run(question)).text
    return "".join([update.text async for update in writer.run(question, stream=True)])
