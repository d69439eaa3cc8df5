"""What became of the replies."""

from __future__ import annotations

from collections.abc import Iterator

from agentlightning.contracts.store import AttemptRecords
from agentlightning.types import Completion


def truncated(records: AttemptRecords) -> Iterator[Completion]:
    """The replies that a limit of tokens ended."""
    return (completion for completion in records.completions if completion.finish_reason == "length")
