"""Puts the OpenTelemetry spans of one attempt together: one record for each span with a meaning, and one `llm` span for each model call.

Spans end, and arrive, before their parents. A record therefore names the parent that its span has, unless that is known to be plumbing
already. Plumbing that arrives later becomes a `link`, and readers of the attempt pass through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from threading import Lock

from agentlightning.capture.otel.meaning import EndedSpan, Meaning, read
from agentlightning.types import Span


class Assembly:
    """The spans of one attempt so far. Safe from any thread. `recorded`: what the store has of it."""

    def __init__(self, attempt_id: str, recorded: Iterable[Span] = ()) -> None:
        self.attempt_id = attempt_id
        self._lock = Lock()
        self._recorded: set[str] = set()
        self._awaited: set[str] = set()  # parents that records name
        self._around_calls: set[str] = set()  # those with a model call directly below
        self._plumbing: dict[str, str | None] = {}  # with the parent
        self._calls: set[str] = set()  # that `llm` spans name
        self._agents: dict[str, str] = {}  # names of spans, as the steps below them tell
        for span in recorded:
            self._note(span)

    def add(self, spans: Sequence[EndedSpan]) -> list[Span]:
        """Return the records of ended spans. A span that came before gives none."""
        with self._lock:
            depth = _depths(spans)
            new = [span for span in spans if span.id not in self._recorded and span.id not in self._plumbing]
            new.sort(key=lambda span: -depth[span.id])
            meanings = {span.id: self._meaning(span) for span in new}
            records = [_record(self.attempt_id, span, meanings[span.id], self._above(span)) for span in new if meanings[span.id].kind]
            for record in records:
                self._note(record)
            return [*records, *(self._link(span) for span in new if meanings[span.id].kind is None and span.id in self._awaited)]

    def _meaning(self, span: EndedSpan) -> Meaning:
        """Read a span. A model call around another one, or one that a span names already, is plumbing."""
        meaning = read(span)
        if meaning.kind == "llm":
            if span.id in self._around_calls or meaning.call_id in self._calls:
                meaning = Meaning(None)
            elif meaning.call_id is not None:
                self._calls.add(meaning.call_id)
        if span.parent_id is not None and (meaning.kind == "llm" or (meaning.kind is None and span.id in self._around_calls)):
            self._around_calls.add(span.parent_id)
        if meaning.kind is None:
            self._plumbing[span.id] = span.parent_id
            if meaning.agent is not None and span.parent_id is not None:
                self._agents.setdefault(span.parent_id, meaning.agent)
        if meaning.kind == "agent":
            name = meaning.agent or self._agents.get(span.id) or meaning.name
            return replace(meaning, name=name, agent=name)
        return meaning

    def _above(self, span: EndedSpan) -> str | None:
        parent, passed = span.parent_id, {span.id}
        while parent in self._plumbing and parent not in passed:
            passed.add(parent)
            parent = self._plumbing[parent]
        return parent

    def _link(self, span: EndedSpan) -> Span:
        link = Span(
            id=span.id, attempt_id=self.attempt_id, kind="link", name=span.name, parent_id=self._above(span), started=span.started,
            ended=span.ended,
        )  # fmt: skip
        self._note(link)
        return link

    def _note(self, span: Span) -> None:
        self._recorded.add(span.id)
        if span.parent_id is not None:
            self._awaited.add(span.parent_id)
            if span.kind == "llm":
                self._around_calls.add(span.parent_id)
        if span.call_id is not None:
            self._calls.add(span.call_id)


def _record(attempt_id: str, span: EndedSpan, meaning: Meaning, parent_id: str | None) -> Span:
    assert meaning.kind is not None
    return Span(
        id=span.id, attempt_id=attempt_id, kind=meaning.kind, name=meaning.name, parent_id=parent_id, call_id=meaning.call_id,
        agent=meaning.agent, started=span.started, ended=span.ended, attributes=meaning.attributes,
    )  # fmt: skip


def _depths(spans: Sequence[EndedSpan]) -> dict[str, int]:
    """Return the number of ancestors of each span among these."""
    parents = {span.id: span.parent_id for span in spans}
    depths: dict[str, int] = {}
    for id in parents:
        path: list[str] = []
        above: str | None = id
        while above in parents and above not in depths and above not in path:
            path.append(above)
            above = parents[above]
        start = depths.get(above, 0) + 1 if above is not None and above in depths else 0
        for offset, member in enumerate(reversed(path)):
            depths[member] = start + offset
    return depths
