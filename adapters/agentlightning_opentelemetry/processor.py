"""The span processor: it records the spans that start during a rollout.

It never changes the agent's behaviour. It logs each recording fault once and leaves a note in the attempt. If the store rejects records,
the rollout fails at its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from weakref import WeakKeyDictionary

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import get_current_span

from agentlightning.capture.clients import clients
from agentlightning.capture.model_call import find_calls
from agentlightning.capture.otel.assembly import Assembly
from agentlightning.capture.otel.meaning import EndedSpan, kind_of
from agentlightning.capture.recorder import Recorder, detached
from agentlightning.capture.recorder import current as current_recorder
from agentlightning.capture.to_json import failure
from agentlightning.types import Span as Recorded
from agentlightning_opentelemetry.joining import join, pass_on, settle
from agentlightning_opentelemetry.spans import NAME, OpenSpan, OpenSpans, ended, opened, span_id

log = logging.getLogger(__name__)


class Recording:
    """Process-wide state: the open spans, the records of each attempt, and the logged faults."""

    def __init__(self) -> None:
        self.spans = OpenSpans()
        self.everywhere = False
        """Whether the processors of `install` record."""
        self.complained: set[str] = set()
        self._assemblies: WeakKeyDictionary[Recorder, Assembly] = WeakKeyDictionary()

    def assembly(self, recorder: Recorder) -> Assembly:
        """Return the spans of a rollout so far."""
        return self._assemblies.setdefault(recorder, Assembly(recorder.attempt.id))


@cache
def recording() -> Recording:
    """Return this process's state. It is cached because providers of OpenTelemetry are process-wide too."""
    return Recording()


class LightningSpanProcessor(SpanProcessor):
    """Records agents, tools, and model calls in the current rollout. `install` adds one to the global provider.

    Or add it to a provider of your own: `provider.add_span_processor(LightningSpanProcessor())`. If the context is lost (a bare thread),
    the parent span's rollout is used, or else the one in which this object was created.
    """

    def __init__(self, *, everywhere: bool = False) -> None:
        self._everywhere = everywhere
        self._recorder = None if everywhere else current_recorder()
        self._here = recording()
        clients().install(NAME)
        find_calls(NAME, self._here.spans.find_call)

    @property
    def active(self) -> bool:
        """Whether it records."""
        return not self._everywhere or self._here.everywhere

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Open a span in the current rollout."""
        context = get_current_span(parent_context).get_span_context()
        parent = self._here.spans.get(span_id(context)) if context.is_valid else None
        recorder = current_recorder() or (parent.recorder() if parent is not None else None) or self._recorder
        if recorder is not None and self.active and not detached():
            self._safely(lambda: self._here.spans.start(recorder, opened(span, parent, recorder)), recorder)

    def on_end(self, span: ReadableSpan) -> None:
        """Record a span in the rollout where it was opened."""
        context = span.get_span_context()
        over = self._here.spans.end(span_id(context)) if context is not None else None
        if over is not None:
            self._safely(lambda: self._record(*over, span), over[1])

    def shutdown(self) -> None:
        """Do nothing. Every span goes to its rollout when it ends."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Do nothing. The end of a rollout waits for its records."""
        return True

    def _record(self, span: OpenSpan, recorder: Recorder, readable: ReadableSpan) -> None:
        end = ended(span, readable, clients().adapters())
        kind = None if end.covered else kind_of(end.name, end.scope, end.attributes)
        calls, spans = list[EndedSpan](), list[Recorded]()
        if kind == "llm":
            end = join(span, end, recorder)
        elif kind is None and span.parent is not None:
            pass_on(span, span.parent)
        else:
            calls, spans = settle(span, recorder, span.span_id if kind is not None else None)
        for record in (*spans, *self._here.assembly(recorder).add([*calls, *([end] if end is not None else [])])):
            recorder.add(record)

    def _safely(self, event: Callable[[], object], recorder: Recorder) -> None:
        """Log each kind of fault once and note it in the attempt, because nothing may reach the agent."""
        try:
            event()
        except Exception as error:
            text = f"the OpenTelemetry adapter could not record a span: {failure(error)}"
            if (kind := type(error).__name__) not in self._here.complained:
                self._here.complained.add(kind)
                log.error(text, exc_info=error)
            with suppress(Exception):  # the attempt is closed, or its event loop
                recorder.add(Recorded(attempt_id=recorder.attempt.id, kind="note", name=text, attributes={"source": "opentelemetry"}))
