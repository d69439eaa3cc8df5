"""What the adapter cannot see it says: once in the log, once in each attempt."""

from __future__ import annotations

from typing import Any

import agents
import pytest
from adapter_world import World, problems
from agents import Agent, RunConfig, Runner, function_tool
from openai import AsyncOpenAI

from agentlightning_openai_agents import adapter, install

pytestmark = pytest.mark.usefixtures("installed")


@function_tool
def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


AGENT = Agent(name="writer", tools=[double])


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("agentlightning_openai_agents")]


@pytest.mark.parametrize("how", ["everywhere", "environment", "run"])
async def test_disabled_tracing_is_said_and_its_calls_are_counted(
    world: World, api: str, how: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(tracing_disabled=how == "run")
    if how == "everywhere":
        agents.set_tracing_disabled(True)
    if how == "environment":
        monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    for _ in range(2):
        async with world.rollout() as recorder:
            await Runner.run(AGENT, "question", run_config=config)
            records = await world.records(recorder)
        assert problems(records.spans) == [adapter.DISABLED]
        assert len(records.spans) == 1
        made = await world.trajectory(recorder)
        assert made.calls == {"completed": 2}
        assert [t.agent for t in made.transitions] == [None, None]
    assert said(caplog) == [adapter.DISABLED]


async def test_processors_that_were_replaced_afterwards_are_said(world: World, api: str, caplog: pytest.LogCaptureFixture) -> None:
    agents.set_trace_processors([])
    async with world.rollout() as recorder:
        await Runner.run(AGENT, "question")
        assert problems((await world.records(recorder)).spans) == [adapter.REPLACED]
    assert said(caplog) == [adapter.REPLACED]
    install()
    async with world.rollout() as recorder:
        await Runner.run(AGENT, "question")
        await world.joined(recorder, 2)


async def test_content_that_is_switched_off_is_said_and_the_rest_is_recorded(
    world: World, api: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.rollout() as recorder:
        await Runner.run(AGENT, "question", run_config=RunConfig(trace_include_sensitive_data=False))
        spans = (await world.records(recorder)).spans
        (used,) = await world.spans(recorder, "tool")
    assert problems(spans) == [adapter.WITHHELD]
    assert said(caplog) == [adapter.WITHHELD]
    assert not {"input", "output", "tool_call_id"} & used.attributes.keys()
    made = await world.trajectory(recorder)
    assert [(t.agent, t.turn) for t in made.transitions] == [("writer", 0), ("writer", 1)]


async def test_a_bare_client_is_nobodys_and_no_complaint(world: World) -> None:
    async with world.rollout() as recorder:
        client = AsyncOpenAI(base_url=recorder.llm.base_url, api_key="any")
        await client.responses.create(model="any", input="question")
        records = await world.records(recorder)
    assert (len(records.calls), records.spans) == (1, ())


async def test_a_fault_of_the_adapter_is_logged_once_noted_and_kept_from_the_agent(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(adapter.content, "told", broken)
    async with world.rollout() as recorder:
        await Runner.run(AGENT, "question")
        records = await world.records(recorder)
    assert problems(records.spans) == ["the adapter of the OpenAI Agents SDK could not record a span of 'function': RuntimeError: a bug"]
    assert len(said(caplog)) == 1
    assert len([span for span in records.spans if span.kind == "llm" and span.call_id]) == 2
