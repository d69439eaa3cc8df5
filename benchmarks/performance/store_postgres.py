"""Measures the PostgreSQL store against raw psycopg, on a server of its own in a temporary folder with fsync.

    python benchmarks/performance/store_postgres.py [--records 400] [--writers 8] [--runners 64]

Records: processes write spans of 2 KB, one by one or eight at once, each durable before the next. The reference is a plain INSERT through
psycopg by as many processes in the same run. CPU is that of clients and server together; two cores can do 2000 / CPU ms records a second.
Claims: one runner claims and finishes rollouts, without and with other runners that wait for rollouts. Addition to end: one of the waiting
runners claims and finishes a new rollout. Rounds are interleaved, and ratios use the best ones. It needs PostgreSQL's programs
(`apt-get install postgresql`). Exits with status 1 if a bound is missed.
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
from bounds import Report, finish

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


async def record(address: str, count: int, at_once: int) -> None:
    """Record spans, `at_once` at a time."""
    store = open_postgres(address)
    attempt = await store.begin(rollouts(1)[0], "writer", lease=3600)

    async def write(number: int) -> None:
        for _ in range(number):
            await store.record([Span(attempt_id=attempt.id, kind="tool", name="calculator", attributes={"output": TEXT})])

    with timed():
        await asyncio.gather(*(write(count // at_once) for _ in range(at_once)))
    await store.close()


def insert(address: str, count: int) -> None:
    """The same with plain psycopg: no values, attempts, or checks."""
    with psycopg.connect(Address.parse(address).conninfo, autocommit=True) as sql:
        with timed():
            for _ in range(count):
                sql.execute("INSERT INTO raw (id, value) VALUES (%b, %b) ON CONFLICT DO NOTHING", (uuid.uuid4().hex, TEXT.encode()))


async def idle(address: str, take: bool) -> None:
    """Wait for queued rollouts, as runners do; with `take`, claim what was added."""
    store = open_postgres(address)

    async def runner(name: str) -> None:
        seq = await store.wait(0, timeout=0)
        while True:
            if take:
                for _, attempt in await store.claim(name, lease=60):
                    await store.finish(attempt.id, "succeeded")
            seq = await store.wait(seq, status=["queued"])

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
    """Return figures by name: records a second, CPU milliseconds a record, milliseconds of claims."""
    figures: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    def claim(store: PostgresStore) -> float:
        return 1000 * asyncio.run(claims(store, options.claims))

    def react(store: PostgresStore) -> float:
        return 1000 * asyncio.run(reactions(store, options.claims))

    total = options.records * options.writers
    for _ in range(options.rounds):
        address = server.local(f"bench_{uuid.uuid4().hex}")
        asyncio.run(open_postgres(address).close())
        with psycopg.connect(Address.parse(server.local()).conninfo, autocommit=True) as sql:
            sql.execute("DROP TABLE IF EXISTS raw")
            sql.execute("CREATE TABLE raw (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text UNIQUE, value bytea)")
        for job in ("insert", "record", "record8"):
            before = server.cpu()
            seconds, used = together(job, address, options.records, options.writers)
            add(f"{job}/s", total / seconds)
            add(f"{job} CPU", 1000 * (used + server.cpu() - before) / total)
        for runners in (0, options.runners):
            add(f"claim {runners}", with_runners(address, runners, False, claim))
        for runners in (RUNNERS_PER_PROCESS, options.runners):
            add(f"react {runners}", with_runners(address, runners, True, react))
    return figures


def report(figures: dict[str, list[float]], options: argparse.Namespace) -> list[str]:
    records = Report(f"{options.writers} processes record spans of 2 KB", ("records/s", "CPU ms"))
    for job, name in (("insert", "raw psycopg"), ("record", "store, one by one"), ("record8", "store, eight at once")):
        rate, used = max(figures[f"{job}/s"]), min(figures[f"{job} CPU"])
        ratio = None if job == "insert" else used / min(figures["insert CPU"])
        records.add(name, f"{rate:.0f}", f"{used:.2f}", ratio=ratio, most=None if ratio is None else 4)
    waits = Report("one claim, and one rollout from its addition to its end", ("fastest", "median"))
    for kind, name, few, most in (("claim", "claim", 0, 1.5), ("react", "addition to end", RUNNERS_PER_PROCESS, None)):
        for runners in (few, options.runners):
            values = figures[f"{kind} {runners}"]
            ratio = None if runners == few else min(values) / min(figures[f"{kind} {few}"])
            bound = None if ratio is None else most
            cells = (f"{min(values):.2f} ms", f"{statistics.median(values):.2f} ms")
            waits.add(f"{name}, {runners} runners wait", *cells, ratio=ratio, most=bound)
    return [*records.show(), *waits.show()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=400, help="for each writer")
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--runners", type=int, default=64)
    parser.add_argument("--claims", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", choices=["record", "record8", "insert", "idle", "take"], help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job == "insert":
        insert(options.address, options.records)
    elif options.job in ("record", "record8"):
        asyncio.run(record(options.address, options.records, 8 if options.job == "record8" else 1))
    elif options.job:
        asyncio.run(idle(options.address, options.job == "take"))
    else:
        with temporary_server() as server:
            figures = measure(server, options)
        finish(report(figures, options))


if __name__ == "__main__":
    main()
