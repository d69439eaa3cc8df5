"""What the tests of the adapters share: spans as a tree, and rewards of transitions."""

from __future__ import annotations

from collections.abc import Iterable

from agentlightning.testing.world import World, open_world, problems
from agentlightning.types import Span, Trajectory

__all__ = ["World", "earned", "named", "open_world", "problems", "tree"]


def tree(spans: Iterable[Span]) -> dict[str, list[str]]:
    """Names of the spans below each span; `` stands for the top."""
    spans = sorted(spans, key=lambda span: span.started)
    names = {span.id: span.name for span in spans}
    below: dict[str, list[str]] = {}
    for span in spans:
        below.setdefault(names[span.parent_id] if span.parent_id else "", []).append(span.name)
    return below


def earned(learned: Trajectory) -> list[list[tuple[str, float]]]:
    """Names and values of the rewards of each transition."""
    return [[(reward.name, reward.value) for reward in transition.rewards] for transition in learned.transitions]


def named(spans: Iterable[Span], name: str) -> Span:
    return next(span for span in spans if span.name == name)
