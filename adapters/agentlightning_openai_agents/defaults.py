"""The SDK defaults that `install` replaces: the trace processors and the client.

During a rollout, no trace goes to OpenAI. A processor that exports there is wrapped, and only sees events outside rollouts. The program's
own processors keep their order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import urlsplit

from agents import Span, Trace, TracingProcessor, set_default_openai_client
from agents.models import _openai_shared
from agents.tracing import get_trace_provider
from agents.tracing.processors import BackendSpanExporter
from openai import AsyncOpenAI, OpenAIError

from agentlightning.capture.recorder import current

OPENAI = "api.openai.com"


class RolloutClient(AsyncOpenAI):
    """The SDK's default client. Its requests during a rollout go to the rollout's gateway. Outside one, it is the client the SDK would
    create."""

    agentlightning_of_rollout = True
    """See `agentlightning.capture.openai_patch.OF_ROLLOUT`."""


async def default_key() -> str:
    """Return the SDK's API key when it is needed. A rollout needs none."""
    key = _openai_shared.get_default_openai_key() or os.environ.get("OPENAI_API_KEY")
    if key is None:
        recorder = current()
        if recorder is None or not recorder.llm.base_url:
            raise OpenAIError("No API key is set. Set OPENAI_API_KEY, or call agents.set_default_openai_key. Rollouts need no key.")
    return key or "the rollout's key is set when a request is sent"


class OutsideRollouts(TracingProcessor):
    """Forwards only events outside rollouts to a processor."""

    def __init__(self, inner: TracingProcessor) -> None:
        self.inner = inner
        self._held: set[str] = set()
        """Ids of open traces and spans that started in a rollout."""

    def on_trace_start(self, trace: Trace) -> None:
        if current() is not None:
            self._held.add(trace.trace_id)
        else:
            self.inner.on_trace_start(trace)

    def on_trace_end(self, trace: Trace) -> None:
        if trace.trace_id in self._held:
            self._held.discard(trace.trace_id)
        else:
            self.inner.on_trace_end(trace)

    def on_span_start(self, span: Span[Any]) -> None:
        if current() is not None or span.trace_id in self._held or span.parent_id in self._held:
            self._held.add(span.span_id)
        else:
            self.inner.on_span_start(span)

    def on_span_end(self, span: Span[Any]) -> None:
        if span.span_id in self._held:
            self._held.discard(span.span_id)
        else:
            self.inner.on_span_end(span)

    def shutdown(self) -> None:
        self.inner.shutdown()

    def force_flush(self) -> None:
        self.inner.force_flush()


def put(processor: TracingProcessor) -> None:
    """Add the processor to the program's own, stop exports to OpenAI during rollouts, and set the default client."""
    provider, processors = get_trace_provider(), _processors()
    if processors is None:
        provider.register_processor(processor)
    else:
        quiet = [OutsideRollouts(old) if _exports(old) else old for old in processors]
        provider.set_processors(quiet if processor in processors else [*quiet, processor])
    if _openai_shared.get_default_openai_client() is None:
        set_default_openai_client(RolloutClient(api_key=default_key), use_for_tracing=False)


def remove(processor: TracingProcessor) -> None:
    """Undo `put`. Anything the program has set since then stays."""
    processors = _processors()
    if processors is not None:
        kept = [old.inner if isinstance(old, OutsideRollouts) else old for old in processors if old is not processor]
        get_trace_provider().set_processors(kept)
    if isinstance(_openai_shared.get_default_openai_client(), RolloutClient):
        set_default_openai_client(cast("Any", None), use_for_tracing=False)


def _processors() -> Sequence[TracingProcessor] | None:
    """Return the current processors, or None if the program has its own provider. The SDK has no public API for this."""
    return getattr(getattr(get_trace_provider(), "_multi_processor", None), "_processors", None)


def _exports(processor: TracingProcessor) -> bool:
    """Return True if the processor exports to OpenAI's tracing backend."""
    exporter = getattr(processor, "_exporter", None)
    return isinstance(exporter, BackendSpanExporter) and urlsplit(exporter.endpoint).hostname == OPENAI
