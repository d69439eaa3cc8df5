"""What became of the tools. The adapters record a tool's `output`, or its `error` where it failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentlightning.contracts.store import AttemptRecords
from agentlightning.rl.trajectory.joins import Tree
from agentlightning.types import Span

NOTHING = ("", "[]", "{}", "()", "null", "None")
"""Nothing, as frameworks write it for the model."""


def tool_failed(records: AttemptRecords) -> Iterator[Span]:
    """The tools that ended with an error; of one that failed because another did, which its code had used, the outer one alone."""
    tree = Tree(records.spans)
    for span in _tools(records):
        user = next((level for level in tree.above(span) if level.kind in ("tool", "agent")), None)
        if "error" in span.attributes and not (user is not None and user.kind == "tool" and "error" in user.attributes):
            yield span


def tool_empty(records: AttemptRecords) -> Iterator[Span]:
    """The tools that gave nothing: an empty text, list or table, or null."""
    return (span for span in _tools(records) if "error" not in span.attributes and _nothing(span.attributes.get("output", span)))


def _tools(records: AttemptRecords) -> Iterator[Span]:
    """Guardrails are recorded as tools, and no model asked for them."""
    return (span for span in records.spans if span.kind == "tool" and "guardrail" not in span.attributes)


def _nothing(output: Any) -> bool:
    return output is None or output in ([], {}) or (isinstance(output, str) and output.strip() in NOTHING)
