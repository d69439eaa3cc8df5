"""Joining: which span tells of which model call. Nothing is guessed; a join that is missing says so.

A span joins by its `call_id`; without one, by the hash of its request (attribute `request_hash`) within the attempt, in order of
arrival, and only where that order is beyond doubt. A span that names neither (attribute `join_by_time`) joins the one call made within
its time, where no other span and no other call could be meant.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

from agentlightning.capture.otel.meaning import BY_TIME
from agentlightning.types import Call, Span

REQUEST_HASH = "request_hash"
"""Attribute of an `llm` span: hash of the canonical request, as in `Call.request_hash`."""
TOOL_CALL_ID = "tool_call_id"
"""Attribute of a `tool` span: id of the tool call that asked for it."""
NEVER_ARRIVED = "never reached the gateway"
"""Said of a span whose model call has no counterpart."""
CLOCK = 0.005
"""Seconds by which the times of two processes on one machine may differ."""


class Tree:
    """The spans of an attempt by id, with a way up."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = {span.id: span for span in spans}

    def above(self, span: Span) -> Iterator[Span]:
        """The recorded ancestors, nearest first. Ends at a cycle: clients make the ids."""
        seen = {span.id}
        while span.parent_id is not None and span.parent_id in self.spans and span.parent_id not in seen:
            seen.add(span.parent_id)
            span = self.spans[span.parent_id]
            yield span

    def agent(self, span: Span) -> str | None:
        """Who acted: as the span says, or its nearest agent."""
        if span.agent is not None:
            return span.agent
        for level in (span, *self.above(span)):
            if level.kind == "agent":
                return level.agent or level.name
        return None


@dataclass(frozen=True, slots=True)
class Joins:
    """Which spans tell of which calls."""

    spans: Mapping[str, tuple[Span, ...]]
    """`llm` spans by the id of their call; of a call that was retried, under the id of the retry."""
    alias: Mapping[str, str]
    """Superseded call → the call that was answered in its place."""
    diagnostics: tuple[str, ...]

    def call(self, call_id: str) -> str:
        """The call that counts where this one was superseded, else itself."""
        return self.alias.get(call_id, call_id)


def join(calls: Sequence[Call], spans: Sequence[Span]) -> Joins:
    """Join the `llm` spans of an attempt to its calls."""
    alias = superseded(calls)
    live = {call.id: call for call in calls if call.id not in alias}
    joined: dict[str, list[Span]] = defaultdict(list)
    by_hash: dict[str, list[Span]] = defaultdict(list)
    by_time: list[Span] = []
    diagnostics: list[str] = []
    for span in spans:
        if span.kind != "llm":
            continue
        call_id = alias.get(span.call_id, span.call_id) if span.call_id is not None else None
        if call_id in live:
            joined[call_id].append(span)
        elif call_id is None and isinstance(span.attributes.get(REQUEST_HASH), str):
            by_hash[cast(str, span.attributes[REQUEST_HASH])].append(span)
        elif call_id is None and span.attributes.get(BY_TIME):
            by_time.append(span)
        else:
            diagnostics.append(_never_arrived(span))
    open_calls: dict[str, list[Call]] = defaultdict(list)
    for call in sorted(live.values(), key=lambda call: call.index):
        if call.id not in joined:
            open_calls[call.request_hash].append(call)
    for request, waiting in by_hash.items():
        candidates = open_calls.get(request, [])
        waiting.sort(key=lambda span: span.started)
        if not candidates:
            diagnostics.extend(_never_arrived(span) for span in waiting)
        elif len(candidates) == len(waiting) and not _overlap(waiting):
            for call, span in zip(candidates, waiting, strict=True):
                joined[call.id].append(span)
        else:
            diagnostics.append(
                f"not joined: {len(candidates)} calls and {len(waiting)} spans have the same request and no call id, so their order is in "
                f"doubt (calls {', '.join(call.id for call in candidates)})"
            )
    pairs, doubts = _join_by_time(by_time, [call for call in live.values() if call.id not in joined])
    for call_id, span in pairs:
        joined[call_id].append(span)
    diagnostics.extend(doubts)
    return Joins({call_id: tuple(members) for call_id, members in joined.items()}, alias, tuple(diagnostics))


def _join_by_time(spans: Sequence[Span], calls: Sequence[Call]) -> tuple[list[tuple[str, Span]], list[str]]:
    """The calls that were made within one of these spans each, as (call id, span); and the spans that join none.

    The clocks of two machines may differ by the time of a call. Then a call is in no span, and a span has no call, so nothing is joined.
    """
    within = {span.id: [call for call in calls if _is_within(call, span)] for span in spans}
    around = Counter(call.id for candidates in within.values() for call in candidates)
    empty = [span for span in spans if not within[span.id]]
    doubtful = bool(empty) and len(around) < len(calls)
    pairs: list[tuple[str, Span]] = []
    doubts: list[str] = []
    for span in spans:
        candidates = within[span.id]
        if not candidates:
            doubts.append(_never_arrived(span))
        elif len(candidates) == 1 and around[candidates[0].id] == 1 and not doubtful:
            pairs.append((candidates[0].id, span))
        else:
            ids = ", ".join(call.id for call in candidates)
            doubts.append(
                f"not joined: span {span.name!r} ({span.id}) has no call id, and its time leaves in doubt which call it made ({ids})"
            )
    return pairs, doubts


def _is_within(call: Call, span: Span) -> bool:
    return span.ended is not None and span.started - CLOCK <= call.started and call.ended <= span.ended + CLOCK


def superseded(calls: Sequence[Call]) -> dict[str, str]:
    """Each superseded call, with the call that was answered in its place at last."""
    recorded = {call.id for call in calls}
    after = {call.supersedes: call.id for call in calls if call.supersedes in recorded and call.supersedes != call.id}
    alias: dict[str, str] = {}
    for first in after:
        last, seen = first, {first}
        while last in after and after[last] not in seen:
            last = after[last]
            seen.add(last)
        alias[first] = last
    return alias


def asked_tools(message: Any) -> set[str]:
    """Ids of the tool calls in a reply."""
    calls = cast("dict[str, Any]", message).get("tool_calls") if isinstance(message, dict) else None
    if not isinstance(calls, list):
        return set()
    ids = [cast("dict[str, Any]", call).get("id") for call in cast("list[Any]", calls) if isinstance(call, dict)]
    return {tool_id for tool_id in ids if isinstance(tool_id, str)}


def _overlap(spans: Sequence[Span]) -> bool:
    """Whether one starts (in a list by start) before the one ahead of it has ended."""
    return any(one.ended is None or two.started < one.ended for one, two in pairwise(spans))


def _never_arrived(span: Span) -> str:
    why = "; likely a cache answered it, or the model's base_url is not the gateway's"
    note = span.attributes.get("unjoined") or span.attributes.get("error")  # the adapter's own words, if it has any
    if note:
        why = f": {note}"
    return f"the model call of span {span.name!r} ({span.id}) {NEVER_ARRIVED}{why}"
