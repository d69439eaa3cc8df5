"""Whose call is it, and where does it go: the gateway of the rollout, and no other address sees a key or a trace."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import agents
import pytest
from adapter_world import World, problems
from agents import Agent, Runner, TracingProcessor, function_tool
from agents.models import _openai_shared
from agents.tracing import get_trace_provider
from agents.tracing.processors import BackendSpanExporter, BatchTraceProcessor
from agents.tracing.provider import DefaultTraceProvider
from agents.tracing.spans import SpanImpl
from agents.tracing.traces import TraceImpl
from agents_world import reply
from openai import AsyncOpenAI, OpenAIError
from openai._base_client import BaseClient

import agentlightning as agl
from agentlightning.types import Sampling
from agentlightning_openai_agents import LightningTracingProcessor, install, uninstall


@function_tool
def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


# Built before any gateway, as an agent is that somebody already has. It names no model, or one of its vendor.
AGENT = Agent(name="solver", tools=[double])
NAMED = Agent(name="solver", tools=[double], model="gpt-4o")


async def streamed(agent: Any, given: Any) -> None:
    async for _ in Runner.run_streamed(agent, given).stream_events():
        pass


async def blocking(agent: Any, given: Any) -> None:
    await asyncio.to_thread(Runner.run_sync, agent, given)


@pytest.mark.parametrize("run", [Runner.run, streamed, blocking])
async def test_one_module_level_agent_serves_eight_rollouts_at_once(world: World, api: str, run: Any, installed: None) -> None:
    async def rollout(number: int) -> None:
        async with world.rollout(number) as recorder:
            await asyncio.gather(run(AGENT, f"question {number}"), run(NAMED, f"question {number} again"))
            spans = await world.joined(recorder, 4)
            assert {span.agent for span in spans} == {"solver"}
        made = await world.trajectory(recorder, agents=["solver"])
        assert (made.task.input, made.calls) == (number, {"completed": 4})
        assert [t.trained for t in made.transitions] == [True] * 4
        assert sum(t.continues is not None for t in made.transitions) == 2

    await asyncio.gather(*(rollout(number) for number in range(8)))


async def test_a_client_of_the_program_s_own_goes_to_the_gateway_for_the_models_that_were_named(world: World, api: str) -> None:
    client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="secret", max_retries=0)
    agents.set_default_openai_client(client, use_for_tracing=False)
    install(models=["gpt-4o*"])
    assert _openai_shared.get_default_openai_client() is client
    async with world.rollout() as recorder:
        await Runner.run(NAMED, "question")
        await world.joined(recorder, 2)
        with pytest.raises(OpenAIError, match="Connection error"):
            await Runner.run(Agent(name="judge", model="other"), "question")
        records = await world.records(recorder)
    assert len(records.calls) == 2
    (astray,) = [span for span in records.spans if span.kind == "llm" and span.call_id is None]
    assert astray.attributes["unjoined"].startswith("another address: the request went to 127.0.0.1:9 for model 'other'")
    assert "agentlightning_openai_agents.install(models=['other'])" in astray.attributes["unjoined"]
    assert "Connection error" in astray.attributes["error"]
    made = await world.trajectory(recorder)
    assert made.calls == {"completed": 2}
    assert len([said for said in made.diagnostics if "never reached the gateway" in said]) == 1


async def test_outside_a_rollout_the_default_client_is_what_the_sdk_would_have_made(monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    with pytest.raises(OpenAIError, match="Set OPENAI_API_KEY"):
        await Runner.run(AGENT, "question")
    client = _openai_shared.get_default_openai_client()
    assert client is not None
    copied = client.with_options(max_retries=0)  # as the SDK does for retries of its own
    monkeypatch.setenv("OPENAI_API_KEY", "own")
    assert [await each._refresh_api_key() for each in (client, copied)] == ["own", "own"]
    monkeypatch.setattr(_openai_shared, "_default_openai_key", "given")
    assert [await each._refresh_api_key() for each in (client, copied)] == ["given", "given"]
    assert (type(copied), str(copied.base_url)) == (type(client), "https://api.openai.com/v1/")


class Exporter(BackendSpanExporter):
    """OpenAI's, but that it sends nothing."""

    def __init__(self) -> None:
        super().__init__(api_key="key")
        self.sent: list[Any] = []

    def export(self, items: list[Any]) -> None:
        self.sent += items


class Watcher(TracingProcessor):
    """A processor of the program's own."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_trace_start(self, trace: Any) -> None:
        self.seen.append("trace")

    def on_trace_end(self, trace: Any) -> None:
        pass

    def on_span_start(self, span: Any) -> None:
        self.seen.append(span.span_data.type)

    def on_span_end(self, span: Any) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def force_flush(self) -> None:
        pass


async def test_nothing_is_exported_to_openai_in_a_rollout_and_own_processors_see_everything(world: World) -> None:
    exporter, watcher = Exporter(), Watcher()
    batch = BatchTraceProcessor(exporter)
    agents.set_trace_processors([batch, watcher])
    install()
    install()
    async with world.rollout() as recorder:
        await Runner.run(AGENT, "question")
        await world.joined(recorder, 2)
    batch.force_flush()
    assert exporter.sent == []
    assert watcher.seen.count("response") == 2
    with agents.trace("outside"):
        with agents.custom_span("outside"):
            pass
        async with world.rollout() as recorder:
            await Runner.run(AGENT, "question")
            await world.joined(recorder, 2)
    batch.force_flush()
    assert [getattr(item, "name", None) or item.span_data.name for item in exporter.sent] == ["outside", "outside"]
    assert watcher.seen.count("response") == 4
    uninstall()
    assert list(get_trace_provider()._multi_processor._processors) == [batch, watcher]  # type: ignore[attr-defined]
    batch.shutdown()


async def test_a_trace_provider_of_the_program_s_own_gets_the_processor_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hides its processors: it takes ours, and keeps it, silent, after `uninstall`."""

    class Provider(DefaultTraceProvider):
        def __init__(self) -> None:
            super().__init__()
            self._hidden = self._multi_processor
            del self._multi_processor

        def register_processor(self, processor: TracingProcessor) -> None:
            self._hidden.add_tracing_processor(processor)

        def create_trace(self, name: str, **settings: Any) -> Any:
            return TraceImpl(name, settings.get("trace_id"), None, None, self._hidden)

        def create_span(self, span_data: Any, span_id: Any = None, parent: Any = None, disabled: bool = False) -> Any:
            above = self.get_current_span()
            return SpanImpl("t", span_id, above.span_id if above is not None else None, self._hidden, span_data, None)

    monkeypatch.setattr("agents.tracing.setup.GLOBAL_TRACE_PROVIDER", Provider())
    install()
    install()
    async with world.rollout() as recorder:
        await Runner.run(AGENT, "question")
        assert len(await world.joined(recorder, 2)) == 2
    uninstall()
    async with world.rollout() as recorder:
        with pytest.raises(OpenAIError):
            await Runner.run(AGENT, "question")
        assert (await world.records(recorder)).spans == ()


async def test_uninstalling_leaves_the_libraries_as_they_were(world: World) -> None:
    before = BaseClient._build_request
    install()
    install(models=["a"])
    assert BaseClient._build_request is not before
    uninstall()
    assert BaseClient._build_request is before
    assert _openai_shared.get_default_openai_client() is None
    async with world.rollout() as recorder:
        client = AsyncOpenAI(base_url=recorder.llm.base_url, api_key=recorder.llm.api_key)
        model = agents.OpenAIResponsesModel(recorder.llm.model, client)
        await Runner.run(Agent(name="writer", model=model), "question")
        records = await world.records(recorder)
    assert (len(records.calls), records.spans) == (1, ())


async def test_the_langchain_adapter_beside_this_one_sends_nothing_twice(world: World) -> None:
    from langchain_openai import ChatOpenAI

    import agentlightning_langchain

    before = BaseClient._build_request
    agentlightning_langchain.install(models=["small"])
    try:
        install()
        chat = ChatOpenAI(model="small", base_url="http://127.0.0.1:9/v1", api_key="secret", max_retries=0)  # pyright: ignore

        @function_tool
        async def ask(x: int) -> str:
            """Asks a model of LangChain."""
            return (await chat.ainvoke(f"what is {x}?")).text

        async with world.rollout() as recorder:
            await Runner.run(Agent(name="boss", tools=[ask]), "question")
            llm = await world.joined(recorder, 3)
        assert [span.agent for span in llm] == ["boss", None, "boss"]
        uninstall()
        assert BaseClient._build_request is not before
    finally:
        agentlightning_langchain.uninstall()
    assert BaseClient._build_request is before


async def test_a_processor_made_in_a_rollout_keeps_it_in_a_bare_thread(world: World, api: str) -> None:
    async with world.rollout() as recorder:
        llm = recorder.llm
        client = AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key)
        agents.set_default_openai_client(client, use_for_tracing=False)
        agents.set_trace_processors([LightningTracingProcessor()])
        agent = Agent(name="solver", tools=[double], model=llm.model)
        with ThreadPoolExecutor(2) as pool:
            done = [pool.submit(Runner.run_sync, agent, f"question {i}") for i in range(2)]
            await asyncio.gather(*map(asyncio.wrap_future, done))
        assert [span.agent for span in await world.joined(recorder, 4)] == ["solver"] * 4


def test_the_client_of_an_ended_event_loop_goes_on_in_the_next(world: World, installed: None) -> None:
    """Two runs in one process, each with a loop of its own."""

    async def once() -> None:
        async with world.rollout() as recorder:
            await Runner.run(AGENT, "question")
            await world.joined(recorder, 2)

    for _ in range(3):
        asyncio.run(once())


class TestFailures:
    @pytest.fixture
    def script(self) -> Any:
        tries = iter(range(10))

        def flaky(prompt: str, sampling: Sampling) -> str:
            if next(tries) == 0:
                raise RuntimeError("the engine broke")
            return reply(prompt, sampling)

        return flaky

    async def test_a_retry_of_the_client_is_joined_to_the_try_that_answered(self, world: World, api: str, installed: None) -> None:
        async with world.rollout() as recorder:
            await Runner.run(Agent(name="writer"), "question")
            records = await world.records(recorder)
        (span,) = [span for span in records.spans if span.kind == "llm"]
        (answered,) = [call for call in records.calls if call.status == "completed"]
        assert span.call_id == answered.id
        made = await world.trajectory(recorder)
        assert made.calls == {"superseded": 1, "completed": 1}
        assert not [said for said in made.diagnostics if "never reached" in said]

    async def test_a_call_that_failed_at_the_gateway_is_joined_to_it(self, world: World, api: str, installed: None) -> None:
        async with world.rollout() as recorder:
            once = agents.ModelSettings(retry=agents.ModelRetrySettings(max_retries=0))
            with pytest.raises(OpenAIError, match="the engine broke"):
                await Runner.run(Agent(name="writer", model_settings=once), "question")
            records = await world.records(recorder)
        (span,) = [span for span in records.spans if span.kind == "llm"]
        assert "the engine broke" in span.attributes["error"]
        assert [call.id for call in records.calls] == [span.call_id]
        assert (await world.trajectory(recorder)).calls == {"error": 1}


class TestCancelling:
    @pytest.fixture
    def delay(self) -> float:
        return 0.4

    async def test_a_model_call_that_was_cancelled_is_a_span_of_its_call(self, world: World, api: str, installed: None) -> None:
        async with world.rollout() as recorder:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(Runner.run(Agent(name="solver"), "question"), 0.3)
            (call,) = (await world.settled(recorder, 1)).calls
            (span,) = await world.spans(recorder, "llm")
        assert call.status == "cancelled"
        assert (span.call_id, span.agent) == (call.id, "solver")
        assert problems((await world.records(recorder)).spans) == []
        assert (await world.trajectory(recorder)).calls == {"cancelled": 1}

    async def test_a_stream_that_is_left_is_a_span_of_its_call(self, world: World, api: str, installed: None) -> None:
        async with world.rollout() as recorder:
            result = Runner.run_streamed(Agent(name="solver"), "question")
            async for event in result.stream_events():
                if event.type == "raw_response_event":
                    break
            result.cancel()
            del result
            gc.collect()
            records = await world.settled(recorder, 1)
            while not (spans := await world.spans(recorder, "llm")):
                await asyncio.sleep(0.01)
        assert [span.call_id for span in spans] == [call.id for call in records.calls]
        assert agl.current() is None


BARE = """
import asyncio, sys
from agents import Agent, Runner, function_tool, set_default_openai_api

@function_tool
def double(x: int) -> int:
    "Doubles a number."
    return 2 * x

set_default_openai_api(sys.argv[1])
print(asyncio.run(Runner.run(Agent(name="solver", tools=[double], model=sys.argv[2]), "question")).final_output)
"""


@pytest.fixture
async def environment(world: World) -> AsyncIterator[tuple[Any, dict[str, str]]]:
    async with world.rollout() as recorder:
        yield recorder, {"OPENAI_BASE_URL": recorder.llm.base_url, "OPENAI_API_KEY": recorder.llm.api_key, "PATH": ""}


async def test_a_bare_program_in_its_own_process_is_recorded_through_its_environment(
    world: World, api: str, environment: tuple[Any, dict[str, str]], tmp_path: Path
) -> None:
    recorder, env = environment
    program = tmp_path / "program.py"
    program.write_text(BARE)
    # Without an adapter nobody keeps its traces from OpenAI but its own switch.
    command = [sys.executable, str(program), api, recorder.llm.model]
    ran = await asyncio.to_thread(
        subprocess.run, command, env=env | {"OPENAI_AGENTS_DISABLE_TRACING": "1"}, capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.stderr) == ("the answer of: 6\n", "")
    records = await world.records(recorder)
    assert [call.status for call in records.calls] == ["completed", "completed"]
    assert records.completions[1].continues == records.completions[0].id
