"""Several processes at once, and processes that are killed."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from collections import defaultdict
from pathlib import Path

from acknowledged import check_acknowledged, line, start
from agentlightning.testing.store import rollouts
from agentlightning.types import Rollout, Task
from agentlightning_sqlite.store import SQLiteStore


async def test_nothing_acknowledged_is_lost_when_a_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "agl.db"
    acknowledged: defaultdict[str, list[list[str]]] = defaultdict(list)
    for number in range(4):
        process = start("write", str(path), f"w{number}")
        assert line(process) == ["ready"]
        lines = [line(process)]
        deadline = time.monotonic() + 0.25 + 0.1 * number
        while time.monotonic() < deadline:
            lines.append(line(process))
        process.send_signal(signal.SIGKILL)
        assert process.stdout is not None
        lines += [rest.split() for rest in process.stdout.read().splitlines(keepends=True) if rest.endswith("\n")]
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        for word, *rest in lines:
            acknowledged[word].append(rest)
    store = SQLiteStore(path)
    await check_acknowledged(store, acknowledged)
    await store.close()
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_processes_that_claim_at_once_never_share_an_attempt(tmp_path: Path) -> None:
    path = tmp_path / "agl.db"
    store = SQLiteStore(path)
    await store.add(rollouts(300))
    processes = [start("drain", str(path), f"p{i}") for i in range(3)]
    taken: list[str] = []
    for process in processes:  # one that is up first would take everything while the others start
        assert line(process) == ["ready"]
    outputs = await asyncio.gather(*(asyncio.to_thread(process.communicate, "go\n") for process in processes))
    assert all(process.returncode == 0 for process in processes)
    for output, _ in outputs:
        mine = [words[1] for words in map(str.split, output.splitlines()) if words[0] == "claimed"]
        taken += mine
    assert sum("claimed" in output for output, _ in outputs) >= 2  # or they took turns, and nothing was shown
    assert sorted(taken) == sorted(state.rollout.id for state in (await store.list(limit=300))[0])
    assert all(state.status == "succeeded" and len(state.attempts) == 1 for state in (await store.list(limit=300))[0])
    await store.close()


async def test_wait_hears_what_another_process_commits(tmp_path: Path) -> None:
    path = tmp_path / "agl.db"
    store = SQLiteStore(path)
    process = start("watch", str(path), "watcher")
    try:
        assert line(process) == ["ready"]
        assert line(process) == ["seq", "0"]
        await asyncio.sleep(0.4)  # the system has begun to report events
        delays: list[float] = []
        for seq in range(1, 12):
            await asyncio.sleep(0.03)
            began = time.monotonic()
            await store.add([Rollout(task=Task(str(seq), {}), mode="train")])
            assert await asyncio.to_thread(line, process) == ["seq", str(seq)]
            delays.append(time.monotonic() - began)
        assert sorted(delays)[len(delays) // 2] < 0.25, delays
        assert max(delays) < 2, delays  # less than the look that comes without an event
    finally:
        process.kill()
        process.communicate()
        await store.close()


def test_processes_may_make_the_file_at_the_same_time(tmp_path: Path) -> None:
    processes = [start("drain", str(tmp_path / "new" / "agl.db"), f"p{i}") for i in range(4)]
    for process in processes:
        output, _ = process.communicate(timeout=30)
        assert (process.returncode, output) == (0, "ready\n")
