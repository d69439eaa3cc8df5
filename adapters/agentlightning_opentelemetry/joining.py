"""Finds the recorded call behind each model call of this process.

The answer tells it (`gen_ai.response.id`), or the request that was sent in the span. Some frameworks send the request outside the span of
their model call, as where a stream starts late. So a model call without a request waits for the end of the agent or tool around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from agentlightning.capture.model_call import ModelCall, claim
from agentlightning.capture.otel.meaning import EndedSpan, told
from agentlightning.capture.recorder import Recorder
from agentlightning.types import Span
from agentlightning_opentelemetry.spans import NAME, OpenSpan, Request, is_of_another_adapter


def join(span: OpenSpan, end: EndedSpan, recorder: Recorder) -> EndedSpan | None:
    """Return a model call with its recorded call, or with the reason why there is none. None: it waits."""
    answer = told(end.attributes)
    if is_of_another_adapter(span, recorder, answer):
        return replace(end, covered=True)
    call = ModelCall(NAME, span.recorder, sent=[(request.key, request.call_id) for request in span.requests])
    call.elsewhere = span.call.elsewhere if span.call is not None else None
    if answer is None and not call.sent and call.elsewhere is None and span.parent is not None:
        span.parent.unjoined.append(end)
        return None
    call_id, unjoined = call.end(answer)
    return replace(end, call_id=call_id, unjoined=unjoined, near=not call.sent and call.elsewhere is None)


def pass_on(span: OpenSpan, parent: OpenSpan) -> None:
    """Give what waits in a span of plumbing to its parent."""
    parent.passed.extend(span.requests)
    parent.unjoined.extend(span.unjoined)


def settle(span: OpenSpan, recorder: Recorder, parent_id: str | None) -> tuple[list[EndedSpan], list[Span]]:
    """Return what waited for the end of an agent or a tool: its model calls, and spans of ours for requests without one."""
    requests = list({request.key or request.call_id: request for request in span.requests}.values())  # the last try of each
    requests = [request for request in requests if claim(recorder, request.call_id)]
    waiting = sorted(span.unjoined, key=lambda end: end.started)
    if len(requests) == len(waiting) and not _overlap(waiting):
        return [replace(end, call_id=request.call_id) for end, request in zip(waiting, requests, strict=True)], []
    if not requests:
        return [replace(end, unjoined=ModelCall(NAME, span.recorder).end()[1], near=True) for end in waiting], []
    return [], [_span_of(request, recorder, parent_id) for request in requests]


def _span_of(request: Request, recorder: Recorder, parent_id: str | None) -> Span:
    return Span(
        attempt_id=recorder.attempt.id, kind="llm", name=request.model or recorder.llm.model, parent_id=parent_id,
        call_id=request.call_id, started=request.sent, ended=request.sent,
    )  # fmt: skip


def _overlap(spans: Sequence[EndedSpan]) -> bool:
    return any(after.started < before.ended for before, after in pairwise(spans))
