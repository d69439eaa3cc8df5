"""The records of attempts in the table `records`.

A conversation repeats its history. A completion that continues another one is therefore stored as a reference to it and the tail of its
prompt. The file grows with new tokens only. Reading restores the full prompt.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec.structs import replace

from agentlightning.contracts.store import AttemptRecords
from agentlightning.stores.serialization import decode, encode
from agentlightning.types import Attempt, Call, Completion, IntArray, Record, Reward, Span, ints

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

    @classmethod
    def of(cls, record: Record) -> Row:
        """Encode a record. Raises `WireError` for content that JSON cannot hold."""
        kind = type(record).__name__
        if not isinstance(record, Completion):
            return cls(record.attempt_id, kind, record.id, encode(record))
        value = encode(replace(record, prompt_ids=NO_TOKENS))
        return cls(record.attempt_id, kind, record.id, value, record.continues, record.prompt_ids)


class RecordTable:
    """Reads and writes the table through one connection. `place` is `attempts.number_in_file`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection
        self._tokens: OrderedDict[str, IntArray] = OrderedDict()  # prompt and response by completion id: a deleted `seq` is used again
        self._cached = 0  # their lengths together

    def forget(self) -> None:
        """Drop cached tokens after a rollback."""
        self._tokens.clear()
        self._cached = 0

    def append(self, rows: Sequence[Row]) -> int:
        """Append records without prompts, and return their number: the first value under an id stays, and an attempt may be unknown."""
        return self._sql.executemany(
            "INSERT INTO records (attempt, kind, id, value) SELECT number_in_file, ?, ?, ? FROM attempts WHERE id = ? "
            "ON CONFLICT (id, kind) DO NOTHING",
            [(row.kind, row.id, row.value, row.attempt_id) for row in rows],
        ).rowcount

    def insert(self, place: int, row: Row) -> None:
        """Append a completion. The first value under an id stays."""
        base, prompt = self._tail(place, row)
        self._sql.execute(
            "INSERT INTO records (attempt, kind, id, base, prompt, value) VALUES (?,?,?,?,?,?) ON CONFLICT (id, kind) DO NOTHING",
            (place, row.kind, row.id, base, encode(prompt), row.value),
        )

    def _tail(self, place: int, row: Row) -> tuple[int | None, IntArray]:
        """Return the completion whose tokens start the prompt, and the rest of the prompt. Without one, return None and the whole
        prompt."""
        prompt = NO_TOKENS if row.prompt is None else row.prompt
        if row.continues is None or row.continues == row.id:
            return None, prompt
        base = self._sql.execute(
            "SELECT seq FROM records WHERE id = ? AND kind = 'Completion' AND attempt = ?", (row.continues, place)
        ).fetchone()
        if base is None:
            return None, prompt
        start = self._conversation(row.continues, base[0])
        if not np.array_equal(start, prompt[: len(start)]):
            return None, prompt
        return base[0], prompt[len(start) :]

    def _conversation(self, completion_id: str, seq: int) -> IntArray:
        """Return prompt and response of a completion, from the cache or from its chain of bases."""
        uncached: list[tuple[str, IntArray, IntArray]] = []
        row_id, base = completion_id, seq
        while row_id not in self._tokens:
            base, prompt, value = self._sql.execute("SELECT base, prompt, value FROM records WHERE seq = ?", (base,)).fetchone()
            uncached.append((row_id, decode(prompt, IntArray), decode(value, Completion).response_ids))
            if base is None:
                break
            (row_id,) = self._sql.execute("SELECT id FROM records WHERE seq = ?", (base,)).fetchone()
        tokens = NO_TOKENS if base is None else self._tokens[row_id]
        for row_id, prompt, response in reversed(uncached):
            self._tokens[row_id] = tokens = np.concatenate([tokens, prompt, response])
            self._cached += len(tokens)
        self._tokens.move_to_end(completion_id)
        while self._cached > CACHED_TOKENS and len(self._tokens) > 1:
            self._cached -= len(self._tokens.popitem(last=False)[1])
        return tokens

    def of(self, place: int, attempt: Attempt) -> AttemptRecords:
        """Return all records of an attempt, with full prompts."""
        by_kind: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        conversations: dict[int, IntArray] = {}
        rows = self._sql.execute("SELECT seq, kind, base, prompt, value FROM records WHERE attempt = ? ORDER BY seq", (place,)).fetchall()
        bases = {base for _, _, base, _, _ in rows}
        for seq, kind, base, prompt, value in rows:
            record = decode(value, KINDS[kind])
            if isinstance(record, Completion):
                tail: IntArray = decode(prompt, IntArray)
                record = replace(record, prompt_ids=tail if base is None else np.concatenate([conversations[base], tail]))
                if seq in bases:
                    conversations[seq] = np.concatenate([record.prompt_ids, record.response_ids])
            by_kind[kind].append(record)
        return AttemptRecords(
            attempt=attempt, calls=tuple(by_kind["Call"]), completions=tuple(by_kind["Completion"]), spans=tuple(by_kind["Span"]),
            rewards=tuple(by_kind["Reward"]),
        )  # fmt: skip
