"""One transaction in two round trips: rows to lock, then changes with the commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

Row = tuple[Any, ...]
Statement = tuple[str, Sequence[Any]]
"""SQL and its values."""
SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class Transaction:
    """Sends statements together, because each round trip costs more than the work behind it."""

    def __init__(self, connection: psycopg.AsyncConnection[Row]) -> None:
        self.sql = connection

    async def query(self, statement: str, values: Sequence[Any] = ()) -> list[Row]:
        """Run one statement, which commits by itself outside `begin`."""
        cursor = await self.sql.execute(statement, values)  # type: ignore[arg-type]  # texts of this package
        return await cursor.fetchall() if cursor.description else []

    async def begin(self, *statements: Statement) -> list[list[Row]]:
        """Begin, and return the rows of each statement."""
        return (await self._together(("BEGIN", ()), *statements))[1:]

    async def commit(self, *statements: Statement) -> list[list[Row]]:
        """Commit after the last statements, and return their rows. A failure before the commit leaves the rollback to the pool."""
        return (await self._together(*statements, ("COMMIT", ())))[:-1]

    async def rollback(self) -> None:
        await self.sql.rollback()

    async def snapshot(self, *statements: Statement) -> list[list[Row]]:
        """Return the rows of statements that read one unchanging view of the store."""
        return (await self._together((SNAPSHOT, ()), *statements, ("COMMIT", ())))[1:-1]

    async def _together(self, *statements: Statement) -> list[list[Row]]:
        async with self.sql.pipeline():
            cursors = [await self.sql.execute(text, values) for text, values in statements]  # type: ignore[arg-type]
        return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]
