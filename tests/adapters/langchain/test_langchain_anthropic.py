"""`ChatAnthropic`, built before any rollout: routed, recorded and joined, as `ChatOpenAI` is."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import Any

import pytest
from adapter_world import World
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_world import question

from agentlightning_langchain import install

if find_spec("langchain_anthropic") is None:
    pytest.skip("langchain_anthropic is not installed", allow_module_level=True)


@tool
def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


def agent(**settings: Any) -> Any:
    from langchain_anthropic import ChatAnthropic  # pyright: ignore[reportMissingImports]

    model: Any = ChatAnthropic
    return create_agent(model(model_name="claude-x", api_key="secret", max_retries=0, **settings), [double], name="solver")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("run", ["invoke", "ainvoke"])
async def test_one_module_level_chat_anthropic_serves_eight_rollouts_at_once(world: World, streaming: bool, run: str) -> None:
    install(models=["claude-*"])
    solver = agent(streaming=streaming)

    async def rollout(number: int) -> None:
        async with world.rollout(number) as recorder:
            if run == "ainvoke":
                await solver.ainvoke(question(number))
            else:
                await asyncio.to_thread(solver.invoke, question(number))
            spans = await world.joined(recorder, 2)
            assert {span.agent for span in spans} == {"solver"}

    await asyncio.gather(*(rollout(number) for number in range(8)))
