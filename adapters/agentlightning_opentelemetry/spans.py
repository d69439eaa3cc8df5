"""The open spans of this process, and the requests that were sent in them.

A request belongs to the span that is current when it is sent. Plumbing passes its requests on to its parent, so the nearest model call
around a request has it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span
from opentelemetry.trace import StatusCode

from agentlightning.capture.model_call import ModelCall, opened_call, sender
from agentlightning.capture.open_runs import Run, Runs
from agentlightning.capture.otel.meaning import EndedSpan, kind_of
from agentlightning.capture.recorder import Recorder
from agentlightning.types import SpanKind

NAME = "agentlightning_opentelemetry"
COVERED = {
    "langchain": "agentlightning_langchain",
    "openai_agents": "agentlightning_openai_agents",
    "openai-agents": "agentlightning_openai_agents",
    "autogen": "agentlightning_autogen",
}
"""Adapters of ours, by a word in the names of instrumentations that tell of the same events."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the gateway."""

    key: str | None
    """The same for every try of one request."""
    call_id: str
    model: str
    """As the agent named it."""
    sent: float
    """Seconds since the epoch."""


@dataclass(slots=True, eq=False, kw_only=True)
class OpenSpan(Run):
    """A span that has not ended. Its `kind` is unknown until then."""

    live: Span
    first: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Its attributes at its start. A provider may drop the oldest ones later."""
    times: list[float] = field(default_factory=list[float])
    """When `call` sent each of its requests."""
    passed: list[Request] = field(default_factory=list[Request])
    """Requests that plumbing below has passed on."""
    unjoined: list[EndedSpan] = field(default_factory=list[EndedSpan])
    """Model calls below that had no request of their own."""

    @property
    def kind_now(self) -> SpanKind | None:
        """Its kind, as far as its attributes tell."""
        return kind_of(self.live.name, scope(self.live), {**self.first, **(self.live.attributes or {})})

    @property
    def requests(self) -> list[Request]:
        """Its own requests, and those passed on."""
        call = self.call
        model = "" if call is None else str(call.asked.get("model") or "")
        sent = [] if call is None else [Request(*request, model, at) for request, at in zip(call.sent, self.times, strict=False)]
        return sorted([*self.passed, *sent], key=lambda request: request.sent)


class OpenSpans(Runs[OpenSpan]):
    """Every open span of this process. Safe from any thread."""

    def current(self) -> OpenSpan | None:
        """Return the span that is current here, if it belongs to a rollout."""
        context = trace.get_current_span().get_span_context()
        return self.get(span_id(context)) if context.is_valid else None

    def find_call(self) -> ModelCall | None:
        """Return the model call for a request that is sent here."""
        span = self.current()
        if span is None or span.recorder() is None:
            return None
        if span.call is None:
            span.call = ModelCall(NAME, span.recorder)
        span.times[len(span.call.sent) :] = [time.time()]
        return span.call


def span_id(context: trace.SpanContext) -> str:
    """Return our id of a span."""
    return f"{context.span_id:016x}{context.trace_id:032x}"


def scope(span: ReadableSpan) -> str:
    """Return the name of the instrumentation that made a span."""
    return span.instrumentation_scope.name if span.instrumentation_scope is not None else ""


def opened(span: Span, parent: OpenSpan | None, recorder: Recorder) -> OpenSpan:
    """Return a span that starts. A parent of another rollout, as around a queue's worker, is none."""
    parent = parent if parent is not None and parent.recorder() is recorder else None
    return OpenSpan(
        id=span_id(span.get_span_context()), name=span.name, kind=None, parent=parent, recorder=ref(recorder), live=span,
        first=dict(span.attributes or {}),
    )  # fmt: skip


def ended(span: OpenSpan, readable: ReadableSpan, adapters: Collection[str]) -> EndedSpan:
    """Return a span that has ended. `adapters`: the installed ones."""
    attributes = {**span.first, **(readable.attributes or {})}
    return EndedSpan(
        id=span.span_id, parent_id=span.parent.span_id if span.parent is not None else None, name=readable.name, scope=scope(readable),
        started=(readable.start_time or 0) / 1e9, ended=(readable.end_time or 0) / 1e9, attributes=attributes,
        events=tuple((event.name, dict(event.attributes or {})) for event in readable.events),
        failed=readable.status.status_code is StatusCode.ERROR, error=readable.status.description,
        covered=any(word in scope(readable) and adapter in adapters for word, adapter in COVERED.items()),
    )  # fmt: skip


def is_of_another_adapter(span: OpenSpan, recorder: Recorder, answer: str | None) -> bool:
    """Whether an adapter of ours sent the request of a model call, and records it. `answer`: the call id that it tells."""
    if answer is not None:
        return sender(recorder, answer) not in (None, NAME)
    return not span.requests and opened_call() is not None
