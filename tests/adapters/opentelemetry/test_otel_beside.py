"""The OpenTelemetry adapter beside an adapter of the framework: each event is recorded once, by the one that knows more."""

from __future__ import annotations

from typing import Any

import pytest
from adapter_world import World, tree
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from openai import OpenAI
from opentelemetry import trace
from otel_world import GenAI, OpenInference, run

import agentlightning as agl
import agentlightning_langchain
import agentlightning_opentelemetry
from agentlightning.capture.recorder import Recorder
from agentlightning.testing.adapter_contract import double


@pytest.fixture(autouse=True)
def both() -> Any:
    agentlightning_langchain.install()
    agentlightning_opentelemetry.install()
    yield
    agentlightning_langchain.uninstall()


class Instrumented(ChatOpenAI):
    """A model whose client is instrumented, as the instrumentations of the `openai` library do it."""

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        with trace.get_tracer("opentelemetry.instrumentation.openai_v2").start_as_current_span("chat") as span:
            span.set_attributes(GenAI.call("m"))
            result = super()._generate(*args, **kwargs)
            span.set_attributes(GenAI.answer(result.llm_output["system_fingerprint"]))
            return result


def solver(recorder: Recorder) -> Any:
    llm = recorder.llm
    return create_agent(Instrumented(model=llm.model, base_url=llm.base_url, api_key=llm.api_key, max_retries=0), [double], name="solver")


async def test_a_model_call_of_langchain_is_langchains(world: World) -> None:
    async with world.rollout() as recorder:
        solver(recorder).invoke({"messages": [("user", "double 4")]})
        spans = await world.joined(recorder, 2)
        assert [span.agent for span in spans] == ["solver", "solver"]


async def test_a_span_of_langchains_instrumentation_is_left_out(world: World) -> None:
    tracer = trace.get_tracer("openinference.instrumentation.langchain")
    async with world.rollout() as recorder:
        with tracer.start_as_current_span("solver") as span:
            span.set_attributes(OpenInference.agent("solver"))
            solver(recorder).invoke({"messages": [("user", "double 4")]})
        await world.joined(recorder, 2)
        assert len(await world.spans(recorder, "tool")) == 1
        assert tree(await world.spans(recorder))[""] == ["solver"]


async def test_without_the_adapter_of_langchain_its_instrumentation_counts(world: World) -> None:
    agentlightning_langchain.uninstall()
    async with world.rollout() as recorder:
        with trace.get_tracer("openinference.instrumentation.langchain").start_as_current_span("solver") as span:
            span.set_attributes(OpenInference.agent("solver"))
            solver(recorder).invoke({"messages": [("user", "double 4")]})
        await world.joined(recorder, 2)
    learned = await world.trajectory(recorder, agents=["solver"])
    assert [transition.agent for transition in learned.transitions] == ["solver", "solver"]


async def test_two_instrumentations_of_one_call_give_one_span(world: World) -> None:
    tracer = trace.get_tracer("an-agent")
    async with world.rollout() as recorder:
        client = OpenAI(base_url=recorder.llm.base_url, api_key=recorder.llm.api_key)
        with tracer.start_as_current_span("framework") as outer, tracer.start_as_current_span("library") as inner:
            outer.set_attributes(OpenInference.call("m"))
            inner.set_attributes(GenAI.call("m"))
            answer = client.chat.completions.create(model=recorder.llm.model, messages=[{"role": "user", "content": "hi"}])
            inner.set_attributes(GenAI.answer(answer.id))
        await world.joined(recorder, 1)


async def test_a_call_that_nobody_instruments_belongs_to_the_tool_and_the_agent_around_it(world: World) -> None:
    tracer = trace.get_tracer("an-agent")
    async with world.rollout() as recorder:
        client = OpenAI(base_url=recorder.llm.base_url, api_key=recorder.llm.api_key)
        with tracer.start_as_current_span("a") as agent, tracer.start_as_current_span("t") as tool, tracer.start_as_current_span("step"):
            agent.set_attributes(GenAI.agent("writer"))
            tool.set_attributes(GenAI.tool("summarise", "c1", "{}"))
            client.chat.completions.create(model=recorder.llm.model, messages=[{"role": "user", "content": "hi"}])
        await world.joined(recorder, 1)
        spans = await world.spans(recorder)
    assert tree(spans) == {"": ["writer"], "writer": ["summarise"], "summarise": [recorder.llm.model]}
    assert [transition.agent for transition in (await world.trajectory(recorder, agents=["writer"])).transitions] == ["writer"]


async def test_a_model_call_whose_request_leaves_its_span_is_joined_at_the_end_of_its_agent(world: World) -> None:
    """As where a framework returns a stream, and the request is sent by whoever reads it."""
    tracer = trace.get_tracer("an-agent")
    async with world.rollout() as recorder:
        client = OpenAI(base_url=recorder.llm.base_url, api_key=recorder.llm.api_key)
        with tracer.start_as_current_span("a") as agent:
            agent.set_attributes(GenAI.agent("writer"))
            for _ in range(2):
                call = tracer.start_span("ask")  # current nowhere
                call.set_attributes(OpenInference.call("m"))
                client.chat.completions.create(model=recorder.llm.model, messages=[{"role": "user", "content": "hi"}])
                call.end()
        spans = await world.joined(recorder, 2)
        assert [span.name for span in spans] == ["m", "m"]


async def test_a_rollout_within_the_span_of_another_has_a_tree_of_its_own(world: World) -> None:
    async with world.rollout(1) as outer:
        with trace.get_tracer("an-agent").start_as_current_span("a") as span:
            span.set_attributes(GenAI.agent("outer"))
            async with world.rollout(2) as inner:
                await run(GenAI, inner.llm, double, "double 4")
                await world.joined(inner, 2)
        assert tree(await world.spans(outer)) == {"": ["outer"]}


async def test_code_that_is_taken_out_of_the_rollout_leaves_no_spans(world: World) -> None:
    async with world.rollout() as recorder:
        with trace.get_tracer("an-agent").start_as_current_span("a") as span, agl.attach(None):
            span.set_attributes(GenAI.agent("writer"))
            with trace.get_tracer("an-agent").start_as_current_span("t") as tool:
                tool.set_attributes(GenAI.tool("judge", "c1", "{}"))
        assert tree(await world.spans(recorder)) == {"": ["writer"]}


async def test_spans_outside_a_rollout_and_parents_from_before_it_are_not_recorded(world: World) -> None:
    with trace.get_tracer("a-server").start_as_current_span("request") as span:
        span.set_attributes(GenAI.agent("server"))
        async with world.rollout() as recorder:
            await run(OpenInference, recorder.llm, double, "double 4")
            await world.joined(recorder, 2)
            assert tree(await world.spans(recorder))[""] == ["solver"]
