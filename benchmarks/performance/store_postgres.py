"""Measures the PostgreSQL store against raw psycopg, on a server of its own in a temporary folder with fsync.

    python benchmarks/performance/store_postgres.py [--records 400] [--writers 8] [--runners 64]

Records: processes write spans of 2 KB, one by one, each durable before the next. The reference is a plain INSERT through psycopg by as many
processes in the same run. Claims: one runner claims and finishes rollouts, without and with other runners that wait for changes; and a
rollout is added while all of them wait for it. Rounds are interleaved, and medians are shown. CPU is the time of the client processes.
It needs PostgreSQL's programs (`apt-get install postgresql`). Exits with status 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager

import psycopg

from agentlightning.types import Rollout, Span, Task
from agentlightning_postgres.address import Address
from agentlightning_postgres.store import PostgresStore, open_postgres
from agentlightning_postgres.testing import Server, temporary_server

TEXT = "x" * 2000
RUNNERS_PER_PROCESS = 8


def rollouts(count: int) -> list[Rollout]:
    return [Rollout(task=Task(str(number), {"question": number}), mode="train") for number in range(count)]


@contextmanager
def timed() -> Generator[None]:
    """Start with the other processes. Print when the block began and ended, and its CPU seconds."""
    print("ready", flush=True)
    sys.stdin.readline()
    began, used = time.monotonic(), time.process_time()
    yield
    print(began, time.monotonic(), time.process_time() - used, flush=True)


async def record(address: str, count: int) -> None:
    """Record spans one by one."""
    store = open_postgres(address)
    attempt = await store.begin(rollouts(1)[0], "writer", lease=3600)
    with timed():
        for _ in range(count):
            await store.record([Span(attempt_id=attempt.id, kind="tool", name="calculator", attributes={"output": TEXT})])
    await store.close()


def insert(address: str, count: int) -> None:
    """The same with plain psycopg: no values, attempts, or checks."""
    with psycopg.connect(Address.parse(address).conninfo, autocommit=True) as sql:
        with timed():
            for _ in range(count):
                sql.execute("INSERT INTO raw (id, value) VALUES (%b, %b) ON CONFLICT DO NOTHING", (uuid.uuid4().hex, TEXT.encode()))


async def idle(address: str, take: bool) -> None:
    """Wait for every change, as runners do; with `take`, claim what was added."""
    store = open_postgres(address)

    async def runner(name: str) -> None:
        seq = await store.wait(0, timeout=0)
        while True:
            if take:
                for _, attempt in await store.claim(name, lease=60):
                    await store.finish(attempt.id, "succeeded")
            seq = await store.wait(seq)

    waiting = [asyncio.ensure_future(runner(f"r{number}")) for number in range(RUNNERS_PER_PROCESS)]
    await asyncio.sleep(0.5)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await store.close()


def start(job: str, address: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--job", job, "--address", address, "--records", str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def together(job: str, address: str, count: int, processes: int) -> tuple[float, float]:
    """Run a job in processes at once. Returns the seconds between their start and their end, and their CPU seconds."""
    workers = [start(job, address, count) for _ in range(processes)]
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    times = [[float(word) for word in worker.communicate()[0].split()] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit(f"A process of the job {job!r} failed.")
    return max(end for _, end, _ in times) - min(began for began, _, _ in times), sum(used for _, _, used in times)


async def claims(store: PostgresStore, count: int) -> float:
    """Seconds of one claim, as the median."""
    await store.add(rollouts(count))
    seconds: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        ((_, attempt),) = await store.claim("claimer", lease=60)
        seconds.append(time.perf_counter() - began)
        await store.finish(attempt.id, "succeeded")
    return statistics.median(seconds)


async def reactions(store: PostgresStore, count: int) -> float:
    """Seconds from `add` to the end of the rollout, which a waiting runner claims, as the median."""
    seconds: list[float] = []
    for rollout in rollouts(count):
        began = time.perf_counter()
        await store.add([rollout])
        seq = 0
        while (await store.read(rollout.id))[0].status != "succeeded":
            seq = await store.wait(seq)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def with_runners(address: str, runners: int, take: bool, measure: Callable[[PostgresStore], float]) -> float:
    workers = [start("take" if take else "idle", address, 0) for _ in range(runners // RUNNERS_PER_PROCESS)]
    store = open_postgres(address)
    try:
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        return measure(store)
    finally:
        asyncio.run(store.close())
        for worker in workers:
            worker.communicate("stop\n")


def measure(server: Server, options: argparse.Namespace) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    for _ in range(options.rounds):
        address = server.local(f"bench_{uuid.uuid4().hex}")
        asyncio.run(open_postgres(address).close())
        with psycopg.connect(Address.parse(server.local()).conninfo, autocommit=True) as sql:
            sql.execute("DROP TABLE IF EXISTS raw")
            sql.execute("CREATE TABLE raw (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text UNIQUE, value bytea)")
        for name, job, place in (("raw", "insert", server.local()), ("store", "record", address)):
            seconds, used = together(job, place, options.records, options.writers)
            add(f"{name} records/s", options.records * options.writers / seconds)
            add(f"{name} CPU ms", 1000 * used / options.records / options.writers)

        def claim(store: PostgresStore) -> float:
            return asyncio.run(claims(store, options.claims))

        def react(store: PostgresStore) -> float:
            return asyncio.run(reactions(store, options.claims))

        for runners in (0, options.runners):
            add(f"claim ms, {runners} waiting", 1000 * with_runners(address, runners, False, claim))
        for runners in (RUNNERS_PER_PROCESS, options.runners):
            add(f"add to end ms, {runners} waiting", 1000 * with_runners(address, runners, True, react))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=400, help="for each writer")
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--runners", type=int, default=64)
    parser.add_argument("--claims", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", choices=["record", "insert", "idle", "take"], help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job == "insert":
        insert(options.address, options.records)
    elif options.job:
        asyncio.run(record(options.address, options.records) if options.job == "record" else idle(options.address, options.job == "take"))
    else:
        with temporary_server() as server:
            figures = {name: statistics.median(values) for name, values in measure(server, options).items()}
        for name, value in figures.items():
            print(f"{name:32} {value:9.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
