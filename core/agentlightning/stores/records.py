"""Records as rows of a table, for stores that keep the prompt of a conversation once.

A conversation repeats its history. A completion that continues another one is therefore stored as a reference to it, its base, and the tail
of its prompt. The table grows with new tokens only. Reading restores the full prompt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from msgspec.structs import replace

from agentlightning.contracts.store import AttemptRecords, RolloutState, StoredRollout
from agentlightning.stores.serialization import decode, encode
from agentlightning.types import Attempt, Call, Completion, IntArray, Record, Reward, Span, ints

K = TypeVar("K", bound=Hashable)

KINDS: dict[str, type[Record]] = {kind.__name__: kind for kind in (Call, Completion, Span, Reward)}
CACHED_TOKENS = 4_000_000
"""Maximum number of tokens that a writer keeps in memory for conversations in progress (16 MB)."""
NO_TOKENS = ints([])


@dataclass(frozen=True, slots=True)
class Row:
    """A record as bytes, separate from a completion's prompt. Later changes by the caller do not affect it."""

    attempt_id: str
    kind: str
    id: str
    value: bytes
    continues: str | None = None
    prompt: IntArray | None = None
    """(prompt,) token ids. None for other records."""
    response: IntArray | None = None
    """(response,) token ids, which `value` holds too. None for other records."""

    @classmethod
    def of(cls, record: Record) -> Row:
        """Encode a record. Raises `WireError` for content that JSON cannot hold."""
        kind = type(record).__name__
        if not isinstance(record, Completion):
            return cls(record.attempt_id, kind, record.id, encode(record))
        value = encode(replace(record, prompt_ids=NO_TOKENS))
        return cls(record.attempt_id, kind, record.id, value, record.continues, record.prompt_ids, record.response_ids)


@dataclass(frozen=True, slots=True)
class Arriving:
    """A rollout of another store, as bytes."""

    state: RolloutState
    value: bytes
    attempts: tuple[tuple[Attempt, list[Row]], ...]

    @classmethod
    def of(cls, stored: StoredRollout) -> Arriving:
        state, attempts = stored
        return cls(state, encode(state.rollout), tuple((attempt.attempt, _rows(attempt)) for attempt in attempts))


def _rows(records: AttemptRecords) -> list[Row]:
    return [Row.of(record) for kind in (records.calls, records.completions, records.spans, records.rewards) for record in kind]


class TokenCache(Generic[K]):
    """Prompt and response of the latest conversations, at most `CACHED_TOKENS` together."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[K, IntArray] = OrderedDict()
        self._cached = 0

    def get(self, key: K) -> IntArray | None:
        """Return the tokens of a completion, and keep them longest."""
        tokens = self._tokens.get(key)
        if tokens is not None:
            self._tokens.move_to_end(key)
        return tokens

    def put(self, key: K, tokens: IntArray) -> None:
        """Keep tokens, and drop those that were used longest ago."""
        if key in self._tokens:
            return
        self._tokens[key] = tokens
        self._cached += len(tokens)
        while self._cached > CACHED_TOKENS and len(self._tokens) > 1:
            self._cached -= len(self._tokens.popitem(last=False)[1])

    def clear(self) -> None:
        self._tokens.clear()
        self._cached = 0


def tail(base: IntArray | None, prompt: IntArray) -> IntArray | None:
    """Return the prompt after the base's tokens, or None if the prompt does not start with them."""
    if base is None or not np.array_equal(base, prompt[: len(base)]):
        return None
    return prompt[len(base) :]


def attempt_records(attempt: Attempt, rows: Sequence[tuple[K, str, K | None, bytes | None, bytes]]) -> AttemptRecords:
    """Return all records of an attempt, with full prompts.

    `rows` holds key, kind, base, prompt and value of each record in order. `base` is the key of an earlier completion.
    """
    by_kind: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    conversations: dict[K, IntArray] = {}
    bases = {base for _, _, base, _, _ in rows}
    for key, kind, base, prompt, value in rows:
        record = decode(value, KINDS[kind])
        if isinstance(record, Completion):
            new: IntArray = decode(prompt or b"", IntArray)
            record = replace(record, prompt_ids=new if base is None else np.concatenate([conversations[base], new]))
            if key in bases:
                conversations[key] = np.concatenate([record.prompt_ids, record.response_ids])
        by_kind[kind].append(record)
    return AttemptRecords(
        attempt=attempt, calls=tuple(by_kind["Call"]), completions=tuple(by_kind["Completion"]), spans=tuple(by_kind["Span"]),
        rewards=tuple(by_kind["Reward"]),
    )  # fmt: skip
