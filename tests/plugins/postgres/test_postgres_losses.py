"""Lost connections, lost answers, and a server that is killed: nothing acknowledged is lost, and nothing happens twice."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from postgres_proxy import Loss, Proxy
from postgres_schemas import NUMBERS

from acknowledged import check_acknowledged, line, start
from agentlightning.errors import StoreError, StoreUnavailable
from agentlightning.testing.store import rollouts, span
from agentlightning_postgres.store import PostgresStore, open_postgres
from agentlightning_postgres.testing import PASSWORD, Server, temporary_server


@pytest.fixture(scope="module")
def fragile(server: Server) -> Iterator[Server]:
    """A server that tests may kill. `server` installs PostgreSQL."""
    with temporary_server(in_memory=True) as running:
        yield running


@pytest.fixture
async def proxied(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Proxy, PostgresStore]]:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    async with Proxy(server.port) as proxy:
        address = server.address(f"test_{next(NUMBERS)}").replace(f":{server.port}/", f":{proxy.port}/")
        store = await asyncio.to_thread(open_postgres, f"{address}&sslmode=disable")
        yield proxy, store
        await store.close()


@pytest.mark.parametrize("loss", ["answer", "late"])
async def test_a_call_whose_commit_or_answer_is_lost_happens_once(proxied: tuple[Proxy, PostgresStore], loss: Loss) -> None:
    proxy, store = proxied
    await store.add(rollouts(6, max_attempts=5))

    async def lossy(call: Any) -> Any:
        before = proxy.losses
        proxy.lose(loss)
        answer = await call
        assert proxy.losses == before + 1
        return answer

    claims = await lossy(store.claim("w", lease=60, limit=2))
    states, _ = await store.list()
    assert [len(state.attempts) for state in states] == [1, 1, 0, 0, 0, 0]
    assert [claimed for _, claimed in claims] == [state.attempts[0] for state in states[:2]]
    state = await lossy(store.finish(claims[0][1].id, "failed", retry=True))
    assert (state.status, len(state.attempts)) == ("queued", 1)
    assert await lossy(store.cancel([state.rollout.id for state in states[1:4]])) == 3
    (own,) = rollouts(1, mode="production")
    attempt = await lossy(store.begin(own, "me", lease=60))
    assert (await store.read(own.id))[0].attempts == (attempt,)
    await lossy(store.add(new := rollouts(2)))
    await asyncio.sleep(Proxy.DELAY + 0.2)  # what came late changes nothing
    states, _ = await store.list()
    assert [state.status for state in states] == [
        "queued",
        "cancelled",
        "cancelled",
        "cancelled",
        "queued",
        "queued",
        "running",
        *["queued"] * 2,
    ]
    assert [state.rollout for state in states[-2:]] == new
    assert sum(len(state.attempts) for state in states) == 3
    assert await store.wait(0, timeout=0) == max(state.seq for state in states)


async def test_a_lost_connection_is_replaced_and_waiters_look_once(store: PostgresStore) -> None:
    await store.add(rollouts(1))
    seq = await store.wait(0)
    waiting = [asyncio.ensure_future(store.wait(seq, timeout=20)) for _ in range(3)]
    await asyncio.sleep(0.1)
    with psycopg.connect(store.address.conninfo, autocommit=True) as sql:
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'agentlightning' AND pid <> pg_backend_pid()"
        sql.execute(cut)
    other = open_postgres(f"{_uri(store)}")
    await other.add(rollouts(1))
    assert await asyncio.gather(*waiting) == [seq + 1] * 3
    await other.close()
    again = asyncio.ensure_future(store.wait(seq + 1, timeout=20))  # it listens again
    await asyncio.sleep(0.1)
    await store.add(rollouts(1))
    assert await again == seq + 2


def _uri(store: PostgresStore) -> str:
    parameters = store.address.parameters
    return f"postgresql://{parameters['user']}@/{parameters['dbname']}?host={parameters['host']}&port={parameters['port']}&schema={store.address.schema}"


async def test_a_waiter_asks_the_server_nothing(store: PostgresStore) -> None:
    def last_query() -> object:
        with psycopg.connect(store.address.conninfo, application_name="test") as sql:
            return sql.execute(
                "SELECT max(state_change), count(*) FROM pg_stat_activity WHERE application_name = 'agentlightning'"
            ).fetchone()

    waiting = asyncio.ensure_future(store.wait(0, timeout=30))
    await asyncio.sleep(0.5)
    before = last_query()
    await asyncio.sleep(1)
    assert last_query() == before
    await store.add(rollouts(1))
    assert await waiting == 1


async def test_an_operation_fails_after_its_patience_and_says_what_to_do(fragile: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning_postgres.access.PATIENCE", 1.0)
    store = open_postgres(fragile.local(f"test_{next(NUMBERS)}"))
    await store.add(rollouts(1))
    waiting = asyncio.ensure_future(store.wait(1))
    await asyncio.sleep(0.1)
    fragile.kill()
    try:
        began = time.monotonic()
        with pytest.raises(StoreError, match=r"(?s)Check that PostgreSQL runs at that address.*tried for 1 seconds"):
            await store.add(rollouts(1))
        assert time.monotonic() - began < 8
        with pytest.raises(StoreError):
            await asyncio.wait_for(waiting, 10)
    finally:
        fragile.start()
    assert len((await store.list())[0]) in (1, 2)
    await store.close()


async def _crash(fragile: Server, writers: int, seconds: float, kills: int) -> None:
    """Kill and start the server while processes write, then kill them, and compare what they printed with the store."""
    address = fragile.local(f"test_{next(NUMBERS)}")
    processes = [start("write", address, f"w{number}") for number in range(writers)]
    for process in processes:
        assert await asyncio.to_thread(line, process) == ["ready"]
    lines: list[str] = []
    readers = [asyncio.create_task(asyncio.to_thread(_read, process.stdout, lines)) for process in processes]
    for _ in range(kills):
        await asyncio.sleep(seconds)
        fragile.kill()
        fragile.start()
    before, deadline = len(lines), time.monotonic() + 30
    while len(lines) < before + 50 * writers:
        assert time.monotonic() < deadline, "the writers did not go on"
        await asyncio.sleep(0.1)
    for process in processes:
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    await asyncio.gather(*readers)
    acknowledged: defaultdict[str, list[list[str]]] = defaultdict(list)
    for text in lines:
        word, *rest = text.split()
        acknowledged[word].append(rest)
    store = open_postgres(address)
    await check_acknowledged(store, acknowledged)
    states, _ = await store.list(limit=100_000)
    running = sum(state.status == "running" for state in states)
    assert running <= 4 * writers, "a claim was made twice"  # each process has four workers, killed in the middle of one rollout
    print(f"{len(acknowledged['recorded'])} records acknowledged, {kills} kills")
    await store.close()
    for process in processes:
        process.communicate()


def _read(stream: Any, lines: list[str]) -> None:
    lines.extend(text for text in stream if text.endswith("\n"))


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(fragile: Server) -> None:
    await _crash(fragile, writers=2, seconds=1.0, kills=1)


@pytest.mark.slow
async def test_eight_processes_lose_nothing_when_the_server_is_killed_again_and_again(fragile: Server) -> None:
    await _crash(fragile, writers=8, seconds=4.0, kills=4)


async def test_calls_that_share_a_transaction_fail_together_when_the_server_is_away(
    fragile: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentlightning_postgres.access.PATIENCE", 1.0)
    store = open_postgres(fragile.local(f"test_{next(NUMBERS)}"))
    await store.add(rollouts(8))
    attempts = [attempt for _, attempt in await store.claim("w", lease=600, limit=8)]
    fragile.kill()
    began = time.monotonic()
    answers = await asyncio.gather(*(store.record([span(attempt.id)]) for attempt in attempts), return_exceptions=True)
    took = time.monotonic() - began
    fragile.start()
    await store.close()
    assert {type(answer) for answer in answers} == {StoreUnavailable}
    assert took < 5, "the first call is tried for a second, then the others together"
