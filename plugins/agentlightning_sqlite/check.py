"""The self-test of the SQLite store for `agl doctor`."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from pathlib import Path

from agentlightning.stores.common import try_out
from agentlightning_sqlite.store import open_sqlite


def check() -> str:
    """Write a rollout to a file, claim it, and read it with another connection."""
    with tempfile.TemporaryDirectory(prefix="agl-doctor-") as folder:
        address = f"sqlite:{Path(folder) / 'store.db'}"
        asyncio.run(try_out(open_sqlite(address), open_sqlite(address)))
    return f"wrote, claimed and read a rollout; SQLite {sqlite3.sqlite_version}"
