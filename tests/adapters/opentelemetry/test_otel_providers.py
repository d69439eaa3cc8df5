"""Whose TracerProvider it is: the program's own counts, whenever it sets one."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest
from adapter_world import World
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_world import GenAI, run

from agentlightning.errors import ConfigError
from agentlightning.testing.adapter_contract import double
from agentlightning_opentelemetry import LightningSpanProcessor, install, uninstall


def exporting() -> tuple[TracerProvider, InMemorySpanExporter]:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


@pytest.mark.parametrize("when", ["before", "after", "after a span"])
async def test_the_provider_of_the_program_exports_as_before_and_records(world: World, when: str, caplog: pytest.LogCaptureFixture) -> None:
    if when != "before":
        install()
    if when == "after a span":
        trace.get_tracer("an-agent").start_span("early").end()
    provider, exporter = exporting()
    trace.set_tracer_provider(provider)
    install()
    assert trace.get_tracer_provider() is provider
    async with world.rollout() as recorder:
        await run(GenAI, recorder.llm, double, "double 4", tracer=trace.get_tracer("an-agent"))
        await world.joined(recorder, 2)
    assert [span.name for span in exporter.get_finished_spans()].count("ask") == 2
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry") and record.levelno >= logging.WARNING]


async def test_a_second_provider_of_the_program_is_refused_as_always(world: World) -> None:
    install()
    first, _ = exporting()
    trace.set_tracer_provider(first)
    trace.set_tracer_provider(exporting()[0])
    assert trace.get_tracer_provider() is first


async def test_a_provider_that_is_not_the_global_one_records_with_a_processor_of_its_own(world: World) -> None:
    provider = TracerProvider()
    provider.add_span_processor(LightningSpanProcessor())
    async with world.rollout() as recorder:
        await run(GenAI, recorder.llm, double, "double 4", tracer=provider.get_tracer("an-agent"))
        await run(GenAI, recorder.llm, double, "double 4", tracer=TracerProvider().get_tracer("an-agent"))
        assert len(await world.spans(recorder, "agent")) == 1


async def test_a_provider_that_drops_attributes_drops_no_meaning(world: World) -> None:
    install()
    trace.set_tracer_provider(TracerProvider(span_limits=SpanLimits(max_span_attributes=3)))
    async with world.rollout() as recorder:
        with trace.get_tracer("an-agent").start_as_current_span("run", attributes=GenAI.agent("writer")) as span:
            span.set_attributes({f"input.{number}": "x" for number in range(9)})
        assert [span.name for span in await world.spans(recorder, "agent")] == ["writer"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_rollouts_that_seed_random_alike_have_spans_of_their_own(world: World, when: str) -> None:
    if when == "before":
        trace.set_tracer_provider(TracerProvider())
    install()

    async def one(number: int) -> list[str]:
        async with world.rollout(number) as recorder:
            random.seed(0)
            await run(GenAI, recorder.llm, double, f"double {number}")
            await world.joined(recorder, 2)
            return [span.id for span in await world.spans(recorder)]

    ids = [id for ids in await asyncio.gather(*(one(number) for number in range(4))) for id in ids]
    assert len(set(ids)) == len(ids) == 16


def test_a_provider_without_processors_is_refused() -> None:
    trace.set_tracer_provider(trace.NoOpTracerProvider())
    with pytest.raises(ConfigError, match="NoOpTracerProvider, which takes no span processors"):
        install()


def test_uninstalled_the_sdk_is_as_it_was() -> None:
    before = trace.set_tracer_provider
    install()
    install()
    uninstall()
    assert trace.set_tracer_provider == before
