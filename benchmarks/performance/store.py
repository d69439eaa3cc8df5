"""Measures cycles per second of the stores: claim -> 10 spans of 2 KB -> finish, with a commit per operation.

    python benchmarks/performance/store.py [--cycles 1000] [--workers 16]

Spans are recorded in two ways: one `record` per span (12 operations), or all together (3 operations, as the recorder's buffer does). The
reference is raw sqlite3 in the same run on the same disk. It does the same inserts and updates one by one, with a commit per operation
(WAL, synchronous=FULL). Compare the ratio to it between machines. Runs are interleaved, and medians are shown.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from agentlightning.contracts.store import LightningStore
from agentlightning.stores.common import open_store
from agentlightning.types import Rollout, Span, Task
from agentlightning_sqlite.store import SQLiteStore

SPANS = 10
TEXT = "x" * 2000


async def cycles(store: LightningStore, count: int, workers: int, together: bool) -> float:
    """Return the seconds for `count` cycles with `workers` at once."""
    await store.add([Rollout(task=Task(str(i), {"question": i}), mode="train") for i in range(count)])

    async def work(name: str) -> None:
        while claimed := await store.claim(name, lease=60):
            attempt = claimed[0][1]
            spans = [Span(attempt_id=attempt.id, kind="tool", name="calculator", attributes={"output": TEXT}) for _ in range(SPANS)]
            for part in [spans] if together else [[span] for span in spans]:
                await store.record(part)
            await store.finish(attempt.id, "succeeded")

    start = time.perf_counter()
    await asyncio.gather(*(work(f"w{i}") for i in range(workers)))
    seconds = time.perf_counter() - start
    _, cursor = await store.list(limit=count)
    assert len((await store.list(limit=count, status=["succeeded"]))[0]) == count, cursor
    await store.close()
    return seconds


def raw(path: Path, count: int, together: bool) -> float:
    """Return the seconds for the same work with plain sqlite3: no values, keys, or leases."""
    sql = sqlite3.connect(path, isolation_level=None)
    sql.execute("PRAGMA journal_mode = WAL")
    sql.execute("PRAGMA synchronous = FULL")
    sql.execute("CREATE TABLE rollouts (n INTEGER PRIMARY KEY, id TEXT UNIQUE, status TEXT)")
    sql.execute("CREATE INDEX by_status ON rollouts (status, n)")
    sql.execute("CREATE TABLE attempts (n INTEGER PRIMARY KEY, id TEXT UNIQUE, rollout INTEGER, status TEXT)")
    sql.execute("CREATE TABLE records (n INTEGER PRIMARY KEY, id TEXT UNIQUE, attempt INTEGER, value BLOB)")
    sql.executemany("INSERT INTO rollouts (id, status) VALUES (?, 'queued')", [(uuid.uuid4().hex,) for _ in range(count)])
    value = TEXT.encode()
    start = time.perf_counter()
    for _ in range(count):
        sql.execute("BEGIN IMMEDIATE")
        (rollout,) = sql.execute("SELECT n FROM rollouts WHERE status = 'queued' ORDER BY n LIMIT 1").fetchone()
        attempt = sql.execute("INSERT INTO attempts (id, rollout, status) VALUES (?, ?, 'running')", (uuid.uuid4().hex, rollout)).lastrowid
        sql.execute("UPDATE rollouts SET status = 'running' WHERE n = ?", (rollout,))
        sql.execute("COMMIT")
        for part in [SPANS] if together else [1] * SPANS:
            sql.execute("BEGIN IMMEDIATE")
            rows = [(uuid.uuid4().hex, attempt, value) for _ in range(part)]
            sql.executemany("INSERT INTO records (id, attempt, value) VALUES (?, ?, ?)", rows)
            sql.execute("COMMIT")
        sql.execute("BEGIN IMMEDIATE")
        sql.execute("UPDATE attempts SET status = 'succeeded' WHERE n = ?", (attempt,))
        sql.execute("UPDATE rollouts SET status = 'succeeded' WHERE n = ?", (rollout,))
        sql.execute("COMMIT")
    seconds = time.perf_counter() - start
    sql.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for together in (False, True):

            def sqlite(workers: int, together: bool = together) -> float:
                path = Path(folder) / f"{uuid.uuid4().hex}.db"
                return asyncio.run(cycles(SQLiteStore(path), options.cycles, workers, together))

            runs: dict[str, Callable[[], float]] = {
                "raw sqlite3, one after the other": lambda together=together: raw(
                    Path(folder) / f"{uuid.uuid4().hex}.db", options.cycles, together
                ),
                "memory": lambda together=together: asyncio.run(cycles(open_store("memory:"), options.cycles, options.workers, together)),
                "sqlite, 1 worker": lambda: sqlite(1),
                f"sqlite, {options.workers} workers": lambda: sqlite(options.workers),
            }
            seconds: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(options.rounds):
                for name, run in runs.items():
                    seconds[name].append(run())
            print(f"claim -> {SPANS} spans of 2 KB, {'together' if together else 'one by one'} -> finish, {options.cycles} cycles")
            rates = {name: options.cycles / statistics.median(values) for name, values in seconds.items()}
            for name, rate in rates.items():
                print(f"  {name:34} {rate:8.0f} cycles/s   {rate / rates['raw sqlite3, one after the other']:6.2f} x raw")


if __name__ == "__main__":
    main()
