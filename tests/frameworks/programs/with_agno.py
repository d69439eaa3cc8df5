"""agno: an agent with a tool, and a tool that asks another agent."""

from __future__ import annotations

from typing import Any

from agno.agent import Agent
from agno.models.openai import OpenAIChat

from agentlightning.types import LLM


def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


def triple(x: int) -> int:
    """Triples a number."""
    return 3 * x


async def run(llm: LLM, question: str, *, stream: bool) -> str:
    def model() -> Any:
        return OpenAIChat(id=llm.model, base_url=llm.base_url, api_key=llm.api_key)

    critic = Agent(name="critic", model=model(), tools=[triple], telemetry=False)

    async def ask_critic(request: str) -> str:
        """Asks the critic."""
        return str((await critic.arun(request)).content)

    writer = Agent(name="writer", model=model(), tools=[double, ask_critic], telemetry=False)
    if not stream:
        return str((await writer.arun(question)).content)
    return "".join([str(event.content or "") async for event in writer.arun(question, stream=True) if event.event == "RunContent"])
