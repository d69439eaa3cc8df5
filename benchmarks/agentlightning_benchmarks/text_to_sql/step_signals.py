"""Step signals of the text-to-SQL benchmark."""

from __future__ import annotations

from collections.abc import Iterator

from agentlightning.contracts.store import AttemptRecords
from agentlightning.types import Span
from agentlightning_benchmarks.text_to_sql.agent import ERROR, sql


def sql_failed(records: AttemptRecords) -> Iterator[Span]:
    """Return the spans of queries that failed to execute."""
    for span in records.spans:
        if span.kind == "tool" and span.name == sql.name and str(span.attributes.get("output", "")).startswith(ERROR):
            yield span
