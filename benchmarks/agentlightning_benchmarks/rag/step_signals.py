"""Step signals of the RAG benchmark."""

from __future__ import annotations

from collections.abc import Iterator

from agentlightning.contracts.store import AttemptRecords
from agentlightning.types import Span
from agentlightning_benchmarks.rag.agent import NOTHING, search


def nothing_found(records: AttemptRecords) -> Iterator[Span]:
    """Return the search spans that found no passage."""
    return (span for span in records.spans if (span.kind, span.name, span.attributes.get("output")) == ("tool", search.name, NOTHING))
