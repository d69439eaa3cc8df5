"""The self-test of the SQLite store for `agl doctor`."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from pathlib import Path

from agentlightning.types import Rollout, Task
from agentlightning_sqlite.store import open_sqlite


def check() -> str:
    """Write a rollout to a file, claim it, and read it with another connection."""

    async def test(address: str) -> str:
        store, other = open_sqlite(address), open_sqlite(address)
        try:
            rollout = Rollout(task=Task("task", {"text": "a"}), mode="train")
            await store.add([rollout])
            await store.claim("doctor", lease=30)
            state, _ = await other.read(rollout.id)
            if state.status != "running":
                raise RuntimeError(f"A claimed rollout has the status {state.status!r}. Please report this error.")
        finally:
            await store.close()
            await other.close()
        return f"wrote, claimed and read a rollout; SQLite {sqlite3.sqlite_version}"

    with tempfile.TemporaryDirectory(prefix="agl-doctor-") as folder:
        return asyncio.run(test(f"sqlite:{Path(folder) / 'store.db'}"))
