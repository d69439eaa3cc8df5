"""Measures the store over HTTP: workers claim a rollout -> record 10 spans of 2 KB -> finish, on a SQLite file behind `agl store serve`.

    python benchmarks/performance/store_http.py [--cycles 1000] [--workers 16] [--rounds 3]

The workers run in one process or in four, each with one client. They record their spans in three ways: in one call, in ten calls at once,
or in ten calls one after the other. Each record is durable before its call returns. The reference is raw sqlite3, as in store.py, in the
same run on the same disk: one writer, one commit per operation, no HTTP. Rounds are interleaved, and ratios use the best ones. CPU is that
of clients and server together. Exits with status 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from bounds import Report, finish, in_turn
from store import SPANS, TEXT, raw

from agentlightning.contracts.store import LightningStore
from agentlightning.stores.common import open_store
from agentlightning.types import Rollout, Span, Task

TOKEN = "benchmark"
WAYS = ("one call", "ten calls at once", "one by one")
PROCESSES = (1, 4)
LEAST = 0.25
"""Of raw sqlite3's rate, for records in one call."""


async def work(store: LightningStore, name: str, way: str) -> int:
    """Claim, record and finish until no rollout is queued. Return the number of rollouts."""
    count = 0
    while claimed := await store.claim(name, lease=60):
        attempt = claimed[0][1]
        spans = [Span(attempt_id=attempt.id, kind="tool", name="calculator", attributes={"output": TEXT}) for _ in range(SPANS)]
        if way == "one call":
            await store.record(spans)
        elif way == "one by one":
            for span in spans:
                await store.record([span])
        else:
            await asyncio.gather(*(store.record([span]) for span in spans))
        await store.finish(attempt.id, "succeeded")
        count += 1
    return count


async def workers(address: str, count: int, way: str) -> None:
    """The job of a client process. It starts with the others, and prints when it began and ended, and its CPU seconds."""
    store = open_store(address)
    await store.list(limit=1)  # connected
    print("ready", flush=True)
    sys.stdin.readline()
    began, used = time.monotonic(), time.process_time()
    done = sum(await asyncio.gather(*(work(store, f"{uuid.uuid4().hex}-{number}", way) for number in range(count))))
    print(json.dumps([began, time.monotonic(), time.process_time() - used, done]), flush=True)
    await store.close()


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def cpu(pid: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def over_http(folder: Path, cycles: int, count: int, processes: int, way: str) -> tuple[float, float]:
    """Return rollouts per second, and CPU milliseconds per rollout."""
    path = folder / f"{uuid.uuid4().hex}.db"
    server = start("-m", "agentlightning", "store", "serve", str(path), "--port", "0", "--token", TOKEN)
    try:
        address = read(server).split()[1]
        asyncio.run(add(address, cycles))
        clients = [start(__file__, "--job", way, "--address", address, "--workers", str(count // processes)) for _ in range(processes)]
        for client in clients:
            read(client)
        used = cpu(server.pid)
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        ends = [json.loads(client.communicate()[0]) for client in clients]
        used = cpu(server.pid) - used + sum(seconds for _, _, seconds, _ in ends)
        if sum(done for *_, done in ends) != cycles:
            raise SystemExit(f"Of {cycles} rollouts, {sum(done for *_, done in ends)} were done.")
        return cycles / (max(end for _, end, _, _ in ends) - min(began for began, _, _, _ in ends)), 1000 * used / cycles
    finally:
        server.terminate()
        server.communicate()
        path.unlink()


async def add(address: str, cycles: int) -> None:
    store = open_store(address)
    await store.add([Rollout(task=Task(str(number), {"question": number}), mode="train") for number in range(cycles)])
    await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        asyncio.run(workers(options.address, options.workers, options.job))
        return
    runs = {f"{way}, {processes} process{'es' * (processes > 1)}": (way, processes) for way in WAYS for processes in PROCESSES}
    rates: dict[str, list[float]] = {name: [] for name in ("raw sqlite3", *runs)}
    used: dict[str, list[float]] = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as folder:
        for name, counts in in_turn(rates, options.rounds):
            if not counts and name != "raw sqlite3":
                continue
            if name == "raw sqlite3":
                path = Path(folder) / f"{uuid.uuid4().hex}.db"
                rates[name].append(options.cycles / raw(path, options.cycles, together=True))
                path.unlink()
                continue
            way, processes = runs[name]
            rate, milliseconds = over_http(Path(folder), options.cycles, options.workers, processes, way)
            rates[name].append(rate)
            used[name].append(milliseconds)
    report = Report(f"{options.workers} workers: claim, record {SPANS} spans of 2 KB, finish", ("rollouts/s", "CPU ms"))
    best = max(rates["raw sqlite3"])
    report.add("raw sqlite3", f"{best:.0f}", "")
    for name, (way, _) in runs.items():
        rate, least = max(rates[name]), LEAST if way == WAYS[0] else None
        report.add(name, f"{rate:.0f}", f"{min(used[name]):.2f}", ratio=rate / best, least=least)
    finish(report.show())


if __name__ == "__main__":
    main()
