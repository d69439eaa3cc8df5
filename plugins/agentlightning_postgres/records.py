"""Writes records: one statement for any number of them, which commits by itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psycopg.errors

from agentlightning.stores.common import not_found
from agentlightning.stores.records import NO_TOKENS, Row, TokenCache, tail
from agentlightning.stores.serialization import decode, encode
from agentlightning.types import Completion, IntArray
from agentlightning_postgres.text import to_column
from agentlightning_postgres.transaction import Statement, Transaction

CACHED_PLACES = 10_000
"""Maximum number of attempts whose `place` is kept in memory."""

INSERT_ONE = """
INSERT INTO records (attempt, kind, id, base, prompt, value) VALUES (%b, %b, %b, %b, %b, %b) ON CONFLICT (id, kind) DO NOTHING
RETURNING kind, id
"""
INSERT = """
INSERT INTO records (attempt, kind, id, base, prompt, value)
SELECT attempt, kind, id, base, prompt, value
FROM unnest(%b::bigint[], %b::text[], %b::text[], %b::text[], %b::bytea[], %b::bytea[]) WITH ORDINALITY
    AS new (attempt, kind, id, base, prompt, value, nth)
ORDER BY nth ON CONFLICT (id, kind) DO NOTHING RETURNING kind, id
"""
CHAIN = """
WITH RECURSIVE chain AS (
    SELECT id, base, prompt, value, 0 AS depth FROM records WHERE kind = 'Completion' AND id = %s AND attempt = %s
    UNION ALL
    SELECT records.id, records.base, records.prompt, records.value, depth + 1
    FROM chain JOIN records ON records.kind = 'Completion' AND records.id = chain.base
) SELECT prompt, value FROM chain ORDER BY depth DESC
"""
Key = tuple[int, str]
"""The place of an attempt, and the id of one of its completions as in its column."""


@dataclass(slots=True)
class _Batch:
    """Rows with what their insertion refers to."""

    rows: list[tuple[int, str, str, str | None, bytes | None, bytes]]
    tokens: dict[Key, IntArray]
    """Prompt and response of the batch's completions."""
    chained: set[Key]
    """Completions of the batch that others of the batch continue."""

    @property
    def insertion(self) -> Statement:
        if len(self.rows) == 1:
            return INSERT_ONE, self.rows[0]
        return INSERT, [list(column) for column in zip(*self.rows, strict=True)]

    def fits(self, inserted: Sequence[Sequence[str]]) -> bool:
        """Whether all completions that others of the batch continue were inserted. Else another writer was first with one, and the stored
        one has to be continued."""
        return {id for _, id in self.chained} <= _completions(inserted)

    def keep(self, inserted: Sequence[Sequence[str]], cache: TokenCache[Key]) -> None:
        """Remember the tokens of the inserted completions."""
        stored = _completions(inserted)
        for key, tokens in self.tokens.items():
            if key[1] in stored:
                cache.put(key, tokens)


def _completions(inserted: Sequence[Sequence[str]]) -> set[str]:
    return {id for kind, id in inserted if kind == "Completion"}


class RecordWriter:
    """Remembers attempts and conversations in progress, so that most records take one round trip."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._places: OrderedDict[str, int] = OrderedDict()
        self._tokens = TokenCache[Key]()

    async def insert(self, sql: Transaction, rows: Sequence[Row]) -> None:
        """Append records, all or none. The first value under an id stays. Raises `NotFound` for an unknown attempt."""
        while rows:
            try:
                inserted = await self._insert(sql, rows)
            except psycopg.errors.ForeignKeyViolation:  # an attempt was deleted since it was remembered
                await sql.rollback()
                self.forget()
                continue
            if inserted:
                return

    async def _insert(self, sql: Transaction, rows: Sequence[Row]) -> bool:
        batch = await self._batch(sql, rows)
        if not batch.chained:
            batch.keep(await sql.query(*batch.insertion), self._tokens)
            return True
        (inserted,) = await sql.begin(batch.insertion)
        if not batch.fits(inserted):
            await sql.rollback()
            return False
        await sql.commit()
        batch.keep(inserted, self._tokens)
        return True

    async def insert_within(self, sql: Transaction, rows: Sequence[Row]) -> bool:
        """Append records in the open transaction. Return False if it must be rolled back and repeated."""
        if not rows:
            return True
        batch = await self._batch(sql, rows)
        return batch.fits(await sql.query(*batch.insertion))

    def forget(self) -> None:
        """Drop what is remembered, after a rollback or a deletion."""
        self._places.clear()
        self._tokens.clear()

    async def _find(self, sql: Transaction, attempt_ids: set[str]) -> dict[str, int]:
        """Return the places of attempts."""
        missing = [id for id in attempt_ids if id not in self._places]
        if missing:
            for id, place in await sql.query("SELECT id, place FROM attempts WHERE id = ANY(%s)", ([to_column(id) for id in missing],)):
                self._places[id] = place
        places: dict[str, int] = {}
        for id in attempt_ids:
            place = self._places.get(id)
            if place is None:
                raise not_found("attempt", id, self._name)
            self._places.move_to_end(id)
            places[id] = place
        while len(self._places) > CACHED_PLACES:
            self._places.popitem(last=False)
        return places

    async def _batch(self, sql: Transaction, rows: Sequence[Row]) -> _Batch:
        places = await self._find(sql, {row.attempt_id for row in rows})
        batch = _Batch([], {}, set())
        for row in rows:
            place, id = places[row.attempt_id], to_column(row.id)
            base, prompt = None, row.prompt
            if row.prompt is not None and row.response is not None:
                base, prompt = await self._tail(sql, batch, place, row, row.prompt)
                batch.tokens.setdefault((place, id), np.concatenate([row.prompt, row.response]))
            batch.rows.append((place, row.kind, id, base, None if prompt is None else encode(prompt), row.value))
        return batch

    async def _tail(self, sql: Transaction, batch: _Batch, place: int, row: Row, prompt: IntArray) -> tuple[str | None, IntArray]:
        """Return the completion whose tokens start the prompt, and the rest of the prompt. Without one, return None and the whole
        prompt."""
        if row.continues is None or row.continues == row.id:
            return None, prompt
        key = (place, to_column(row.continues))
        base = await self._conversation(sql, key)
        chained = base is None and key in batch.tokens
        new = tail(batch.tokens[key] if chained else base, prompt)
        if new is None:
            return None, prompt
        if chained:
            batch.chained.add(key)
        return key[1], new

    async def _conversation(self, sql: Transaction, key: Key) -> IntArray | None:
        """Return prompt and response of a stored completion, from the cache or from its chain of bases."""
        tokens = self._tokens.get(key)
        if tokens is None and (chain := await sql.query(CHAIN, (key[1], key[0]))):
            parts = [part for prompt, value in chain for part in (decode(prompt, IntArray), decode(value, Completion).response_ids)]
            tokens = np.concatenate([NO_TOKENS, *parts])
            self._tokens.put(key, tokens)
        return tokens
