"""Measures cycles per second of the stores: claim -> 10 spans of 2 KB -> finish, with a commit per operation.

    python benchmarks/performance/store.py [--cycles 1000] [--workers 16] [--stored 1000000]

Spans are recorded in two ways: one `record` per span (12 operations), or all together (3 operations, as the recorder's buffer does). The
reference is raw sqlite3 in the same run on the same disk. It does the same inserts and updates one by one, with a commit per operation
(WAL, synchronous=FULL). Compare the ratio to it between machines. Runs are interleaved, and medians are shown. `cpu` is processor time.

`--stored` also times claims, one read, and first pages of the list in a store with so many ended rollouts, against one with 1,000.
A million take 1.3 GB of the temporary folder (TMPDIR).
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agentlightning.contracts.store import LightningStore
from agentlightning.stores.common import open_store
from agentlightning.stores.serialization import encode
from agentlightning.types import Rollout, Span, Task
from agentlightning_sqlite.store import SQLiteStore

SPANS = 10
TEXT = "x" * 2000


def fill(path: Path, count: int) -> list[str]:
    """Make a store with `count` ended rollouts of one attempt and one span, straight in its tables. Return some of their ids."""
    asyncio.run(SQLiteStore(path).close())
    sql = sqlite3.connect(path, isolation_level=None)
    for pragma in ("synchronous = OFF", "foreign_keys = OFF", "cache_size = -200000"):
        sql.execute(f"PRAGMA {pragma}")
    sql.execute("BEGIN")
    ids: list[str] = []
    for n in range(1, count + 1):
        rollout = Rollout(task=Task(str(n % 1000), {"question": n}), mode=("train", "eval", "production")[n % 3], step=n // 256)
        attempt = uuid.uuid4().hex
        span = Span(attempt_id=attempt, kind="tool", name="calculator")
        row = (n, rollout.id, n, "succeeded", rollout.mode, rollout.step, None, 1, 3, encode(rollout))
        sql.execute("INSERT INTO rollouts VALUES (?,?,?,?,?,?,?,?,?,?)", row)
        sql.execute("INSERT INTO attempts VALUES (?,?,?,1,?,'w','succeeded',1.0,2.0,NULL,3.0)", (n, attempt, n, attempt))
        sql.execute("INSERT INTO records VALUES (?,?,'Span',?,NULL,NULL,?)", (n, n, span.id, encode(span)))
        if n % (count // 50) == 0:
            ids.append(rollout.id)
    sql.execute("COMMIT")
    sql.close()
    return ids


async def lookups(path: Path, ids: list[str]) -> dict[str, list[float]]:
    """Return the seconds of single operations."""
    store = SQLiteStore(path)
    await store.add([Rollout(task=Task(str(n), n), mode="train") for n in range(len(ids))])
    operations: dict[str, Callable[[int], Awaitable[Any]]] = {
        "claim": lambda n: store.claim("w", lease=60),
        "read one rollout": lambda n: store.read(ids[n]),
        "first page": lambda n: store.list(),
        "first page of a mode": lambda n: store.list(mode="eval"),
        "first page of a status": lambda n: store.list(status=["succeeded"]),
        "first page in progress": lambda n: store.list(status=["queued", "running"]),
        "first page by end": lambda n: store.list(status=["succeeded"], mode="production", order="changed"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in operations}
    for n in range(len(ids)):
        for name, operation in operations.items():
            start = time.perf_counter()
            await operation(n)
            seconds[name].append(time.perf_counter() - start)
    await store.close()
    return seconds


def compare_sizes(folder: Path, stored: int) -> None:
    """Print the medians of single operations in a small and in a large store."""
    sizes = {count: (path := folder / f"{count}.db", fill(path, count)) for count in (1000, stored)}
    seconds = {count: asyncio.run(lookups(path, ids)) for count, (path, ids) in sizes.items()}
    print(f"medians in a store of {' and of '.join(f'{count:,}' for count in sizes)} rollouts")
    for name in seconds[stored]:
        small, large = (1e3 * statistics.median(seconds[count][name]) for count in (1000, stored))
        print(f"  {name:34} {small:8.2f} ms {large:8.2f} ms   {large / small:6.2f} x")
    for path, _ in sizes.values():
        path.unlink()


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
    parser.add_argument("--stored", type=int, help="also time single operations in a store of so many rollouts")
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
            cpu: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(options.rounds):
                for name, run in runs.items():
                    start = time.process_time()
                    seconds[name].append(run())
                    cpu[name].append(time.process_time() - start)
            print(f"claim -> {SPANS} spans of 2 KB, {'together' if together else 'one by one'} -> finish, {options.cycles} cycles")
            rates = {name: options.cycles / statistics.median(values) for name, values in seconds.items()}
            for name, rate in rates.items():
                used = 1e3 * statistics.median(cpu[name]) / options.cycles
                print(
                    f"  {name:34} {rate:8.0f} cycles/s   {rate / rates['raw sqlite3, one after the other']:6.2f} x raw   {used:5.2f} ms cpu"
                )
        if options.stored:
            compare_sizes(Path(folder), options.stored)


if __name__ == "__main__":
    main()
