"""The spans of an attempt as a tree, with its model calls where the spans name them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agentlightning.contracts.store import AttemptRecords
from agentlightning.rl.trajectory.joins import Joins
from agentlightning.types import Call, Span


@dataclass(frozen=True, slots=True)
class Node:
    """A span with everything below it, in order of their start."""

    span: Span
    call: Call | None
    """The model call that an `llm` span tells of."""
    children: list[Node] = field(default_factory=list["Node"])

    def walk(self) -> Iterator[Node]:
        """Yield this node and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class AttemptTree:
    """Every span and every call of an attempt, once."""

    roots: list[Node]
    calls: list[Call]
    """The calls that no span tells of."""

    @classmethod
    def of(cls, records: AttemptRecords, joins: Joins) -> AttemptTree:
        """Build the tree. Clients choose the ids of spans, so a cycle is possible. Its spans are left out."""
        calls, ids = {call.id: call for call in records.calls}, {span.id for span in records.spans}
        call_of = {span.id: calls[call_id] for call_id, spans in joins.spans.items() for span in spans if call_id in calls}
        children = defaultdict[str | None, list[Span]](list)
        for span in sorted(records.spans, key=lambda span: span.started):
            children[span.parent_id if span.parent_id in ids else None].append(span)
        roots = [_node(span, children, call_of, frozenset()) for span in children[None]]
        placed = {node.call.id for root in roots for node in root.walk() if node.call is not None}
        placed |= {old for old, new in joins.alias.items() if new in placed}
        return cls(roots, [call for call in records.calls if call.id not in placed])


def _node(span: Span, children: Mapping[str | None, Sequence[Span]], call_of: Mapping[str, Call], above: frozenset[str]) -> Node:
    inner, above = children.get(span.id, ()), above | {span.id}
    return Node(span, call_of.get(span.id), [_node(child, children, call_of, above) for child in inner if child.id not in above])
