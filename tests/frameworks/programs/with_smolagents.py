"""smolagents: an agent with a tool, and a managed agent with a tool of its own."""

from __future__ import annotations

import asyncio

from smolagents import OpenAIModel, ToolCallingAgent, tool

from agentlightning.types import LLM


@tool
def double(x: int) -> int:
    """Doubles a number.

    Args:
        x: the number
    """
    return 2 * x


@tool
def triple(x: int) -> int:
    """Triples a number.

    Args:
        x: the number
    """
    return 3 * x


async def run(llm: LLM, question: str, *, stream: bool) -> str:
    model = OpenAIModel(llm.model, api_base=llm.base_url, api_key=llm.api_key)
    critic = ToolCallingAgent([triple], model, name="critic", description="Checks an answer.", stream_outputs=stream, verbosity_level=0)
    writer = ToolCallingAgent([double], model, name="writer", managed_agents=[critic], stream_outputs=stream, verbosity_level=0)
    return str(await asyncio.to_thread(writer.run, question))
