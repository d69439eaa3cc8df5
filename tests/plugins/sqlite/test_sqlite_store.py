"""The SQLite store keeps the contract, and says what is wrong with a file."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from agentlightning.errors import StoreError, StoreVersionError
from agentlightning.registry.registry import registry
from agentlightning.testing.store import StoreContract, completion, rollouts, span
from agentlightning.types import Completion
from agentlightning_sqlite.migrations import OLDEST
from agentlightning_sqlite.schema import VERSION
from agentlightning_sqlite.store import SQLiteStore, open_sqlite


class TestSQLiteStore(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[SQLiteStore]:
        store = open_sqlite(f"sqlite:{tmp_path}/agl.db")
        yield store
        await store.close()


def test_the_registry_opens_it(tmp_path: Path) -> None:
    assert registry().load("stores", "sqlite") is open_sqlite
    assert open_sqlite(str(tmp_path / "plain.db")).path == tmp_path / "plain.db"


async def test_everything_is_there_after_opening_again(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "agl.db")
    await store.add(rollouts(3))
    ((rollout, attempt),) = await store.claim("w", lease=60)
    await store.record([completion(attempt.id, [1], [2]), span(attempt.id)])
    before = await store.read(rollout.id)
    await store.close()
    store = SQLiteStore(tmp_path / "agl.db")
    assert await store.read(rollout.id) == before
    assert await store.wait(0) == 4
    assert len(await store.claim("w", lease=60, limit=9)) == 2
    await store.close()


async def test_bytes_of_a_conversation_grow_with_its_new_tokens(tmp_path: Path) -> None:
    async def size(turns: int, joined: bool) -> int:
        store = SQLiteStore(tmp_path / f"{turns}{joined}.db")
        await store.add(rollouts(1))
        ((_, attempt),) = await store.claim("w", lease=60)
        last: Completion | None = None
        conversation: list[Completion] = []
        for turn in range(turns):
            history = [] if last is None else np.concatenate([last.prompt_ids, last.response_ids]).tolist()
            new = list(range(turn * 1000, turn * 1000 + 100))
            last = completion(attempt.id, history + new, [turn] * 100, continues=last.id if joined and last else None)
            conversation.append(last)
            await store.record([last])
        assert (await store.records(attempt.id)).completions == tuple(conversation)
        await store.close()
        with sqlite3.connect(tmp_path / f"{turns}{joined}.db") as sql:
            return sql.execute("SELECT sum(length(value) + length(prompt)) FROM records").fetchone()[0]

    assert await size(40, True) < 2.2 * await size(20, True)
    assert await size(40, False) > 3.5 * await size(20, False)


async def test_a_prompt_is_whole_after_the_writer_forgot_the_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning.stores.records.CACHED_TOKENS", 5)
    store = SQLiteStore(tmp_path / "agl.db")
    await store.add(rollouts(1))
    ((_, attempt),) = await store.claim("w", lease=60)
    conversation = [completion(attempt.id, [1, 2, 3], [4])]
    for turn in range(5):
        history = np.concatenate([conversation[-1].prompt_ids, conversation[-1].response_ids]).tolist()
        conversation.append(completion(attempt.id, [*history, turn], [9], continues=conversation[-1].id))
        await store.record(conversation[-2:])
    assert (await store.records(attempt.id)).completions == tuple(conversation)
    await store.close()


async def test_one_operation_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "agl.db")
    await store.add(rollouts(1))
    ((_, attempt),) = await store.claim("w", lease=60)
    written = [span(attempt.id) for _ in range(20)]
    results = await asyncio.gather(
        *(store.record([record, span("nobody")] if i % 2 else [record]) for i, record in enumerate(written)), return_exceptions=True
    )
    assert [isinstance(result, StoreError) for result in results] == [bool(i % 2) for i in range(20)]
    assert {s.id for s in (await store.records(attempt.id)).spans} == {record.id for record in written[::2]}
    await store.close()


async def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agl.db"
    await SQLiteStore(path).close()
    for version, way_out in ((VERSION + 1, "Upgrade agentlightning"), (OLDEST - 1, "Open it with the agentlightning that created it")):
        sql = sqlite3.connect(path)
        sql.execute(f"PRAGMA user_version = {version}")
        sql.close()
        with pytest.raises(StoreVersionError, match=rf"agl\.db has version {version}, .* reads versions {OLDEST} to {VERSION}\. {way_out}"):
            SQLiteStore(path)


def test_a_file_that_is_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, " * 500)
    with pytest.raises(StoreError, match=r"notes\.txt.*not a SQLite database: name another file"):
        SQLiteStore(text)
    assert text.read_text() == "not a database, " * 500
    foreign = tmp_path / "other.db"
    sql = sqlite3.connect(foreign)
    sql.execute("CREATE TABLE theirs (a)")
    sql.close()
    before = foreign.read_bytes()
    with pytest.raises(StoreError, match=r"other\.db is a SQLite database, but not an Agent Lightning store"):
        SQLiteStore(foreign)
    assert foreign.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"Cannot create the folder of the store .*file/agl\.db"):
        SQLiteStore(tmp_path / "file" / "agl.db")
    with pytest.raises(StoreError, match="Check that the folder exists"):
        SQLiteStore(tmp_path)
    if os.geteuid() != 0:
        (tmp_path / "shut").mkdir(mode=0o500)
        with pytest.raises(StoreError, match=r"shut/agl\.db.*you may write the folder"):
            SQLiteStore(tmp_path / "shut" / "agl.db")


async def test_a_full_disk_is_an_error_that_names_the_file_and_the_store_goes_on_afterwards(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "agl.db")
    await store.add(rollouts(1))
    ((_, attempt),) = await store.claim("w", lease=60)
    kept = span(attempt.id)
    await store.record([kept])
    await store._access.write(lambda ledger: ledger.sql.execute("PRAGMA max_page_count = 30").fetchone() and None)
    big = [span(attempt.id, attributes={"x": "y" * 1_000_000}) for _ in range(2)]
    with pytest.raises(StoreError, match=r"agl\.db.*The disk is full: free some space"):
        await store.record(big)
    assert (await store.records(attempt.id)).spans == (kept,)
    await store._access.write(lambda ledger: ledger.sql.execute("PRAGMA max_page_count = 1000000").fetchone() and None)
    await store.record(big)
    assert (await store.records(attempt.id)).spans == (kept, *big)
    await store.close()


def test_a_write_that_the_system_refuses_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    code = """
import asyncio, resource, sys
from pathlib import Path
from agentlightning.errors import StoreError
from agentlightning.testing.store import rollouts
from agentlightning_sqlite.migrations import OLDEST
from agentlightning_sqlite.schema import VERSION
from agentlightning_sqlite.store import SQLiteStore

async def main():
    store = SQLiteStore(Path(sys.argv[1]))
    await store.add(rollouts(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    for _ in range(100):
        try:
            await store.add(rollouts(100))
        except StoreError as error:
            print(error)
            break
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    states, _ = await store.list(limit=100_000)
    assert len(states) % 100 == 1, len(states)
    await store.add(rollouts(100))
    await store.close()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "agl.db")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "agl.db" in done.stdout
    assert "The disk" in done.stdout
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 400_000


async def test_closing_wakes_whoever_waits(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "agl.db")
    waiting = asyncio.ensure_future(store.wait(0))
    await asyncio.sleep(0.05)
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await asyncio.wait_for(waiting, 2)


async def test_leases_survive_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, offset, real = SQLiteStore(tmp_path / "agl.db"), 0.0, time.time
    monkeypatch.setattr(time, "time", lambda: real() + offset)
    await store.add(rollouts(3, max_attempts=1))
    (_, kept), (_, beating) = await store.claim("w", lease=60, limit=2)
    ((_, dead),) = await store.claim("dead", lease=0.3)
    offset = 3600.0
    assert await store.claim("thief", lease=60) == []  # nothing is lost
    await store.heartbeat(beating.id, lease=60)
    offset = -3600.0
    await store.heartbeat(kept.id, lease=0.3)
    await asyncio.sleep(0.4)
    await store.claim("thief", lease=60)
    states, _ = await store.list()
    assert [state.attempts[0].status for state in states] == ["lost", "running", "lost"], "only those without a heartbeat"
    assert dead.id == states[2].attempts[0].id
    await store.close()


async def test_a_waiter_hears_of_a_lease_that_ends_after_the_clock_went_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning_sqlite.store.LOOK_ANYWAY", 0.2)
    store, offset, real = SQLiteStore(tmp_path / "agl.db"), 0.0, time.time
    monkeypatch.setattr(time, "time", lambda: real() + offset)
    await store.add(rollouts(1, max_attempts=1))
    await store.claim("dead", lease=0.5)
    waiting = asyncio.ensure_future(store.wait(await store.wait(0), timeout=30))
    await asyncio.sleep(0.1)
    offset = -86400.0
    await asyncio.wait_for(waiting, 5)
    states, _ = await store.list()
    assert states[0].attempts[0].status == "lost"
    await store.close()


async def test_a_clock_that_jumps_within_a_heartbeat_makes_no_endless_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, real, readings = SQLiteStore(tmp_path / "agl.db"), time.time, 0

    def jumps_after_one_reading() -> float:
        nonlocal readings
        readings += 1
        return real() if readings == 1 else real() - 86400

    await store.add(rollouts(1, max_attempts=1))
    ((_, attempt),) = await store.claim("dead", lease=60)
    monkeypatch.setattr(time, "time", jumps_after_one_reading)
    await store.heartbeat(attempt.id, lease=0.3)
    await asyncio.sleep(0.4)
    await store.claim("heir", lease=60)
    states, _ = await store.list()
    assert states[0].attempts[0].status == "lost"
    await store.close()
