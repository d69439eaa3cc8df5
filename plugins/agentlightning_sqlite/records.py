"""The records of attempts in the table `records`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import numpy as np

from agentlightning.contracts.store import AttemptRecords
from agentlightning.stores.records import NO_TOKENS, Row, TokenCache, attempt_records, tail
from agentlightning.stores.serialization import decode, encode
from agentlightning.types import Attempt, Completion, IntArray


class RecordTable:
    """Reads and writes the table through one connection. `place` is `attempts.number_in_file`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection
        self._tokens = TokenCache[str]()  # by completion id, because the `seq` of a deleted record is used again

    def forget(self) -> None:
        """Drop cached tokens after a rollback."""
        self._tokens.clear()

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
        new = tail(self._conversation(row.continues, base[0]), prompt)
        return (None, prompt) if new is None else (base[0], new)

    def _conversation(self, completion_id: str, seq: int) -> IntArray:
        """Return prompt and response of a completion, from the cache or from its chain of bases."""
        uncached: list[tuple[str, IntArray, IntArray]] = []
        row_id, base = completion_id, seq
        while (tokens := self._tokens.get(row_id)) is None:
            base, prompt, value = self._sql.execute("SELECT base, prompt, value FROM records WHERE seq = ?", (base,)).fetchone()
            uncached.append((row_id, decode(prompt, IntArray), decode(value, Completion).response_ids))
            if base is None:
                tokens = NO_TOKENS
                break
            (row_id,) = self._sql.execute("SELECT id FROM records WHERE seq = ?", (base,)).fetchone()
        for row_id, prompt, response in reversed(uncached):
            tokens = np.concatenate([tokens, prompt, response])
            self._tokens.put(row_id, tokens)
        return tokens

    def of(self, place: int, attempt: Attempt) -> AttemptRecords:
        """Return all records of an attempt, with full prompts."""
        rows = self._sql.execute("SELECT seq, kind, base, prompt, value FROM records WHERE attempt = ? ORDER BY seq", (place,)).fetchall()
        return attempt_records(attempt, rows)
