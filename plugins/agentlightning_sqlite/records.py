"""The records of attempts in the table `records`."""

from __future__ import annotations

import sqlite3

import numpy as np

from agentlightning.contracts.store import AttemptRecords
from agentlightning.stores.records import NO_TOKENS, Row, TokenCache, attempt_records, tail
from agentlightning.stores.serialization import decode, encode
from agentlightning.types import Attempt, Completion, IntArray


class RecordTable:
    """Reads and writes the table through one connection. `place` is `attempts.number_in_file`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection
        self._tokens = TokenCache[int]()  # by `records.seq`

    def forget(self) -> None:
        """Drop cached tokens after a rollback."""
        self._tokens.clear()

    def insert(self, place: int, row: Row) -> None:
        """Append a record. The first value under an id stays."""
        base, prompt = (None, None) if row.prompt is None else self._tail(place, row, row.prompt)
        self._sql.execute(
            "INSERT INTO records (attempt, kind, id, base, prompt, value) VALUES (?,?,?,?,?,?) ON CONFLICT (id, kind) DO NOTHING",
            (place, row.kind, row.id, base, None if prompt is None else encode(prompt), row.value),
        )

    def _tail(self, place: int, row: Row, prompt: IntArray) -> tuple[int | None, IntArray]:
        """Return the completion whose tokens start the prompt, and the rest of the prompt. Without one, return None and the whole
        prompt."""
        if row.continues is None or row.continues == row.id:
            return None, prompt
        base = self._sql.execute(
            "SELECT seq FROM records WHERE id = ? AND kind = 'Completion' AND attempt = ?", (row.continues, place)
        ).fetchone()
        new = None if base is None else tail(self._conversation(base[0]), prompt)
        return (None, prompt) if new is None else (base[0], new)

    def _conversation(self, seq: int) -> IntArray:
        """Return prompt and response of a completion, from the cache or from its chain of bases."""
        uncached: list[tuple[int, IntArray, IntArray]] = []
        base: int | None = seq
        while base is not None and base not in self._tokens:
            row_seq = base
            base, prompt, value = self._sql.execute("SELECT base, prompt, value FROM records WHERE seq = ?", (row_seq,)).fetchone()
            uncached.append((row_seq, decode(prompt, IntArray), decode(value, Completion).response_ids))
        cached = None if base is None else self._tokens.get(base)
        tokens = NO_TOKENS if cached is None else cached
        for row_seq, prompt, response in reversed(uncached):
            tokens = np.concatenate([tokens, prompt, response])
            self._tokens.put(row_seq, tokens)
        return tokens

    def of(self, place: int, attempt: Attempt) -> AttemptRecords:
        """Return all records of an attempt, with full prompts."""
        rows = self._sql.execute("SELECT seq, kind, base, prompt, value FROM records WHERE attempt = ? ORDER BY seq", (place,)).fetchall()
        return attempt_records(attempt, rows)
