"""A span that names no call joins the one call made within its time, and only where no other could be meant."""

from __future__ import annotations

from typing import Any

import pytest

from agentlightning.rl.trajectory.joins import join
from agentlightning.types import Call, Span


def call(id: str, start: float, end: float, **more: Any) -> Call:
    return Call(id=id, attempt_id="a1", index=int(start * 10), status="completed", started=start, ended=end, **more)


def span(id: str, start: float, end: float, **more: Any) -> Span:
    attributes = {"join_by_time": True, "unjoined": "its span names no answer"}
    return Span(
        **{"id": id, "attempt_id": "a1", "kind": "llm", "name": "m", "started": start, "ended": end, "attributes": attributes, **more}
    )


def joined(calls: list[Call], spans: list[Span]) -> dict[str, str]:
    return {member.id: id for id, members in join(calls, spans).spans.items() for member in members}


def test_spans_in_a_row_join_the_calls_within_them() -> None:
    assert joined([call("c1", 1.1, 1.9), call("c2", 2.1, 2.9)], [span("s1", 1, 2), span("s2", 2, 3)]) == {"s1": "c1", "s2": "c2"}


def test_a_call_that_no_span_tells_of_and_a_span_without_a_call_do_not_matter_alone() -> None:
    assert joined([call("c1", 1.1, 1.9), call("c2", 5, 6)], [span("s1", 1, 2)]) == {"s1": "c1"}
    assert joined([call("c1", 1.1, 1.9)], [span("s1", 1, 2), span("cached", 2, 3)]) == {"s1": "c1"}


@pytest.mark.parametrize(
    "spans",
    [
        [span("s1", 1, 3), span("s2", 1, 3)],  # both calls lie in both
        [span("s1", 1, 3)],  # two calls in one
    ],
)
def test_nothing_is_guessed(spans: list[Span]) -> None:
    found = join([call("c1", 1.1, 1.9), call("c2", 2.1, 2.9)], spans)
    assert not found.spans
    assert all("leaves in doubt which call it made (c1, c2)" in text for text in found.diagnostics)
    assert len(found.diagnostics) == len(spans)


def test_a_call_within_two_spans_is_nobodys() -> None:
    assert joined([call("c1", 1.1, 1.9)], [span("s1", 1, 2), span("s2", 1, 2)]) == {}


def test_clocks_that_differ_by_the_time_of_a_call_join_nothing() -> None:
    calls = [call(f"c{i}", i + 0.1, i + 0.9) for i in range(4)]
    assert joined(calls, [span(f"s{i}", i + 1, i + 2) for i in range(4)]) == {}


def test_calls_that_other_spans_name_are_taken() -> None:
    named = span("named", 1, 2, call_id="c1", attributes={})
    assert joined([call("c1", 1.1, 1.4), call("c2", 1.5, 1.9)], [named, span("s1", 1, 2)]) == {"named": "c1", "s1": "c2"}


def test_a_retry_counts_in_place_of_the_call_that_it_supersedes() -> None:
    assert joined([call("c1", 1.1, 1.2), call("c2", 1.3, 1.9, supersedes="c1")], [span("s1", 1, 2)]) == {"s1": "c2"}


def test_a_span_that_went_elsewhere_joins_nothing() -> None:
    assert joined([call("c1", 1.1, 1.9)], [span("s1", 1, 2, attributes={"unjoined": "another address"})]) == {}
