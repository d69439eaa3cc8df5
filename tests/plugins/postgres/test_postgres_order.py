"""The order of acknowledgement: a reader with a cursor sees every change, although transactions commit in any order."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from acknowledged import line, start
from agentlightning.testing.store import rollouts
from agentlightning.types import Rollout, Task
from agentlightning_postgres.ledger import counted
from agentlightning_postgres.schema import session
from agentlightning_postgres.store import PostgresStore, open_postgres


async def test_a_number_is_visible_only_after_all_smaller_ones(store: PostgresStore, address: str) -> None:
    await store.add(rollouts(1))
    with psycopg.connect(store.address.conninfo) as slow:  # a writer that has its number and does not commit yet
        slow.execute(session(store.address.schema))
        slow.execute(*counted(1, ["running"]))
        slow.execute("UPDATE rollouts SET status = 'running', changed = 2 WHERE added = 1")
        later = asyncio.ensure_future(store.add(rollouts(1)))
        waiting = asyncio.ensure_future(store.wait(1, timeout=20))
        await asyncio.sleep(0.3)
        assert not later.done()
        assert not waiting.done()
        assert await store.wait(0, timeout=0) == 1
        assert [state.seq for state in (await store.list(order="changed"))[0]] == [1]
        slow.commit()
    await later
    assert await waiting >= 2
    assert [state.seq for state in (await store.list(after=1, order="changed"))[0]] == [2, 3]


async def test_a_reader_with_a_cursor_misses_nothing_of_many_writers(address: str) -> None:
    stores = [open_postgres(address) for _ in range(4)]
    reader = open_postgres(address)
    count, changes = 25, 0

    async def write(store: PostgresStore, name: str) -> None:
        for number in range(count):
            await store.add([Rollout(task=Task(f"{name}-{number}", {}), mode="train")])
            for _, attempt in await store.claim(name, lease=60):
                await store.finish(attempt.id, "succeeded")

    async def read() -> dict[int, str]:
        """Follow the changes. Every number arrives in order, and each rollout's last one is its end."""
        seen: dict[int, str] = {}
        cursor, last = 0, {}
        while sum(status == "succeeded" for status in last.values()) < len(stores) * count:
            page, cursor_after = await reader.list(after=cursor, order="changed", limit=7)
            assert cursor_after >= cursor
            for state in page:
                assert state.seq > cursor
                seen[state.seq] = state.rollout.id
                last[state.rollout.id] = state.status
            cursor = cursor_after
            if not page:
                await reader.wait(cursor, timeout=20)
        return seen

    reading = asyncio.ensure_future(read())
    await asyncio.gather(*(write(store, str(number)) for number, store in enumerate(stores)))
    while claimed := await reader.claim("rest", lease=60, limit=50):
        for _, attempt in claimed:
            await reader.finish(attempt.id, "succeeded")
    seen = await asyncio.wait_for(reading, 60)
    states, _ = await reader.list(limit=1000)
    changes = len(states) * 3  # added, claimed, finished
    assert await reader.wait(0, timeout=0) == changes
    assert {state.seq: state.rollout.id for state in states}.items() <= seen.items()
    for store in (*stores, reader):
        await store.close()


@pytest.mark.slow
async def test_processes_that_claim_at_once_never_share_an_attempt(store: PostgresStore, address: str) -> None:
    await store.add(rollouts(120))
    processes = [start("drain", address, f"p{number}") for number in range(3)]
    for process in processes:
        assert line(process) == ["ready"]
    outputs = await asyncio.gather(*(asyncio.to_thread(process.communicate, "go\n") for process in processes))
    assert all(process.returncode == 0 for process in processes)
    taken = [words[1] for output, _ in outputs for words in map(str.split, output.splitlines()) if words[0] == "claimed"]
    states, _ = await store.list(limit=200)
    assert sorted(taken) == sorted(state.rollout.id for state in states)
    assert all(state.status == "succeeded" and len(state.attempts) == 1 for state in states)


async def test_wait_hears_what_another_process_commits(store: PostgresStore, address: str) -> None:
    process = start("watch", address, "watcher")
    try:
        assert line(process) == ["ready"]
        assert line(process) == ["seq", "0"]
        for seq in range(1, 6):
            await store.add(rollouts(1))
            assert await asyncio.wait_for(asyncio.to_thread(line, process), 10) == ["seq", str(seq)]
    finally:
        process.kill()
        process.communicate()


async def test_a_claim_that_skips_locked_rollouts_still_sees_those_added_meanwhile(store: PostgresStore) -> None:
    """Each worker adds one rollout and claims one, so nobody may find nothing."""

    async def work(name: str) -> None:
        for _ in range(30):
            await store.add(rollouts(1))
            assert len(await store.claim(name, lease=60)) == 1

    await asyncio.gather(*(work(f"w{number}") for number in range(6)))
