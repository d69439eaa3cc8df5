"""Strands Agents: an agent with a tool, and a tool that asks another agent."""

from __future__ import annotations

from strands import Agent, tool
from strands.models.openai import OpenAIModel

from agentlightning.types import LLM


@tool
def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


@tool
def triple(x: int) -> int:
    """Triples a number."""
    return 3 * x


async def run(llm: LLM, question: str, *, stream: bool) -> str:
    model = OpenAIModel(client_args={"base_url": llm.base_url, "api_key": llm.api_key}, model_id=llm.model)
    critic = Agent(model, name="critic", tools=[triple], callback_handler=None)

    @tool
    async def ask_critic(request: str) -> str:
        """Asks the critic."""
        return str(await critic.invoke_async(request))

    writer = Agent(model, name="writer", tools=[double, ask_critic], callback_handler=None)
    if not stream:
        return str(await writer.invoke_async(question))
    events = [event async for event in writer.stream_async(question)]
    return str(events[-1]["result"])
