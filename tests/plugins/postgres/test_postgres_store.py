"""The PostgreSQL store keeps the contract, and says what is wrong with an address or a database."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator

import numpy as np
import psycopg
import pytest
from postgres_schemas import NUMBERS

from agentlightning.errors import NotFound, StoreError, StoreVersionError
from agentlightning.registry.registry import registry
from agentlightning.stores.common import open_store
from agentlightning.testing.store import StoreContract, completion, rollouts, span
from agentlightning.types import Completion, Rollout, Task
from agentlightning_postgres.address import Address
from agentlightning_postgres.schema import VERSION
from agentlightning_postgres.store import PostgresStore, open_postgres
from agentlightning_postgres.testing import PASSWORD, USER, Server


class TestPostgresStore(StoreContract):
    @pytest.fixture
    async def store(self, address: str) -> AsyncIterator[PostgresStore]:
        store = open_postgres(address)
        yield store
        await store.close()


def test_the_registry_opens_it_under_both_names(address: str) -> None:
    assert registry().load("stores", "postgresql") is registry().load("stores", "postgres") is open_postgres
    for uri in (address, address.replace("postgresql://", "postgres://")):
        store = open_store(uri)
        assert isinstance(store, PostgresStore)
        asyncio.run(store.close())


async def test_everything_is_there_after_opening_again(address: str) -> None:
    store = open_postgres(address)
    await store.add(rollouts(3))
    ((rollout, attempt),) = await store.claim("w", lease=60)
    await store.record([completion(attempt.id, [1], [2]), span(attempt.id)])
    before = await store.read(rollout.id)
    await store.close()
    store = open_postgres(address)
    assert await store.read(rollout.id) == before
    assert await store.wait(0) == 4
    assert len(await store.claim("w", lease=60, limit=9)) == 2
    await store.close()


async def test_text_that_postgresql_cannot_hold_comes_back_equal(store: PostgresStore) -> None:
    odd = "a\x00b\x1a\x1a0000\\é"
    broken = f"{odd}\ud800"
    rollout = Rollout(id=f"id {odd}", task=Task(odd, {"text": broken}), mode="train", group=odd)
    await store.add([rollout])
    await store.add([rollout])
    ((claimed, attempt),) = await store.claim(broken, lease=60)
    assert (claimed, attempt.worker, attempt.rollout_id) == (rollout, broken, rollout.id)
    note = span(attempt.id, id=odd, attributes={"output": broken})
    last = completion(attempt.id, [1], [2], id=f"last {odd}")
    following = completion(attempt.id, [1, 2, 3], [4], continues=last.id)
    await store.record([note, last, following])
    state, (records,) = await store.read(rollout.id)
    assert (records.spans, records.completions) == ((note,), (last, following))
    assert [listed.rollout for listed in (await store.list(group=odd))[0]] == [rollout]
    state = await store.finish(attempt.id, "failed", error="why \x00")
    assert state.attempts[0].error == "why \x00"
    for missing in (broken, "\x00"):
        with pytest.raises(StoreError, match="No attempt"):
            await store.attempt(key=missing)


async def test_bytes_of_a_conversation_grow_with_its_new_tokens(server: Server) -> None:
    async def size(turns: int, joined: bool) -> int:
        store = open_postgres(server.local(f"test_{next(NUMBERS)}"))
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
        with psycopg.connect(store.address.conninfo) as sql:
            row = sql.execute(f"SELECT sum(length(value) + length(prompt)) FROM {store.address.schema}.records").fetchone()  # type: ignore[arg-type]
        assert row is not None
        return int(row[0])

    assert await size(40, True) < 2.2 * await size(20, True)
    assert await size(40, False) > 3.5 * await size(20, False)


async def test_a_prompt_is_whole_after_the_writer_forgot_the_conversation(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning.stores.records.CACHED_TOKENS", 5)
    await store.add(rollouts(1))
    ((_, attempt),) = await store.claim("w", lease=60)
    conversation = [completion(attempt.id, [1, 2, 3], [4])]
    for turn in range(5):
        history = np.concatenate([conversation[-1].prompt_ids, conversation[-1].response_ids]).tolist()
        conversation.append(completion(attempt.id, [*history, turn], [9], continues=conversation[-1].id))
        await store.record(conversation[-2:])
    assert (await store.records(attempt.id)).completions == tuple(conversation)


async def test_a_completion_that_another_store_was_first_with_is_continued_as_stored(store: PostgresStore, address: str) -> None:
    await store.add(rollouts(1))
    ((_, attempt),) = await store.claim("w", lease=60)
    other = open_postgres(address)
    first = completion(attempt.id, [1, 2], [3])
    await other.record([first])
    changed = completion(attempt.id, [7, 8], [9], id=first.id)
    following = completion(attempt.id, [7, 8, 9, 10], [11], continues=first.id)
    await store.record([changed, following])
    assert (await store.records(attempt.id)).completions == (first, following)
    await other.close()


async def test_stores_may_create_the_tables_at_the_same_time(address: str) -> None:
    stores = await asyncio.gather(*(asyncio.to_thread(open_postgres, address) for _ in range(4)))
    await stores[0].add(rollouts(1))
    assert len(await stores[3].claim("w", lease=60)) == 1
    for store in stores:
        await store.close()


async def test_a_store_of_a_newer_version_is_refused(store: PostgresStore, address: str) -> None:
    with psycopg.connect(store.address.conninfo) as sql:
        sql.execute(f"INSERT INTO {store.address.schema}.migrations VALUES ({VERSION + 1})")  # type: ignore[arg-type]
    with pytest.raises(StoreVersionError, match=rf"has version {VERSION + 1}, .* reads version {VERSION}\. Upgrade agentlightning"):
        open_postgres(address)


def test_tables_of_something_else_are_refused_and_left_alone(server: Server) -> None:
    address = Address.parse(server.local(f"test_{next(NUMBERS)}"))
    with psycopg.connect(address.conninfo) as sql:
        sql.execute(f"CREATE SCHEMA {address.schema} CREATE TABLE records (id text)")  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=r"has tables of something else\. Add \?schema=NAME"):
        PostgresStore(address)


def test_a_database_without_utf8_is_refused(server: Server) -> None:
    with psycopg.connect(Address.parse(server.local()).conninfo, autocommit=True) as sql:
        sql.execute("CREATE DATABASE old ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(StoreError, match=r"encoding LATIN1\. Create one with `createdb --encoding UTF8"):
        open_postgres(server.local().replace("/postgres?", "/old?"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("/postgres?", "/nowhere?"), r"database \"nowhere\" does not exist.*Create the database with `createdb`"),
        ((f"{USER}@", "nobody@"), r"role \"nobody\" does not exist.*name another user or database"),
        (("port=", "port=1&x="), "is not valid"),
        (("?", "?port=1&"), "Check that PostgreSQL runs at that address"),
        (("schema=", "schema=pg_"), "schema 'pg_agentlightning' .* cannot be used"),
    ],
)
def test_a_database_that_cannot_be_opened_says_what_to_do(server: Server, change: tuple[str, str], message: str) -> None:
    address = server.local()
    if change[1] == "?port=1&":
        address = address.replace(f"port={server.port}", "port=1")
    with pytest.raises(StoreError, match=message):
        open_postgres(address.replace(*change) if change[1] != "?port=1&" else address)


async def test_the_password_comes_from_the_address_or_the_environment_and_is_never_shown(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = PASSWORD.replace("/", "%2F").replace(":", "%3A").replace("@", "%40")
    plain = server.address(f"test_{next(NUMBERS)}")
    told = plain.replace(f"{USER}@", f"{USER}:{secret}@")
    shown: list[str] = []
    store = open_postgres(told)
    await store.add(rollouts(1))
    shown += [repr(store), repr(store.address), str(store.address)]
    await store.close()
    for address in (plain, told.replace("s3cret", "wrong-s3cret"), told.replace(secret, PASSWORD), told.replace("postgresql", "https")):
        with pytest.raises(StoreError) as raised:
            open_postgres(address)
        shown += traceback.format_exception(raised.value)
    with pytest.raises(StoreError) as raised:
        await store.add(rollouts(1))
    shown += traceback.format_exception(raised.value)
    assert "give the password in PGPASSWORD or ~/.pgpass" in "".join(shown)
    assert "s3cret" not in "".join(line for text in shown for line in text.splitlines() if not line.startswith("    ")) + caplog.text
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    store = open_postgres(plain)
    assert len((await store.list())[0]) == 1
    await store.close()


def test_doctor_writes_a_rollout_and_leaves_nothing(server: Server) -> None:
    environment = {**os.environ, "AGL_STORE": server.local()}
    command = [sys.executable, "-c", "from agentlightning_postgres.check import check; print(check())"]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.startswith("wrote, claimed and read a rollout; PostgreSQL ")
    with psycopg.connect(Address.parse(server.local()).conninfo) as sql:
        assert sql.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'agl_doctor%'").fetchall() == []


def test_a_store_that_is_never_closed_ends_quietly_with_its_process(address: str) -> None:
    program = (
        "import asyncio, sys\nfrom agentlightning.stores.common import open_store\n"
        "store = open_store(sys.argv[1])\nprint(asyncio.run(store.list()), asyncio.run(store.wait(0, timeout=0.1)))"
    )
    ended = subprocess.run([sys.executable, "-c", program, address], capture_output=True, text=True, check=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("([], 0) 0\n", "")


async def test_concurrent_adds_of_the_same_rollouts_leave_no_gap(address: str) -> None:
    stores = [open_postgres(address) for _ in range(3)]
    same = rollouts(5)
    await asyncio.gather(*(store.add(same) for store in stores for _ in range(4)))
    assert await stores[0].wait(0, timeout=0) == 5
    assert [state.seq for state in (await stores[0].list())[0]] == [1, 2, 3, 4, 5]
    for store in stores:
        await store.close()


async def test_what_another_store_deleted_is_not_remembered(store: PostgresStore, address: str) -> None:
    (rollout,) = rollouts(1)
    await store.add([rollout])
    ((_, attempt),) = await store.claim("w", lease=60)
    first = completion(attempt.id, [1, 2], [3])
    await store.record([first])
    await store.finish(attempt.id, "succeeded")
    stored = await store.read(rollout.id)
    other = open_postgres(address)
    assert await other.delete([rollout.id]) == 1
    with pytest.raises(NotFound):
        await store.record([span(attempt.id)])
    await other.put([stored])
    following = completion(attempt.id, [1, 2, 3, 4], [5], continues=first.id)
    await store.record([following])
    assert (await store.records(attempt.id)).completions == (first, following)
    await other.close()


async def test_one_call_that_fails_takes_no_other_with_it(store: PostgresStore) -> None:
    await store.add(rollouts(1))
    ((_, attempt),) = await store.claim("w", lease=60)
    written = [span(attempt.id) for _ in range(20)]
    results = await asyncio.gather(
        *(store.record([record, span("nobody")] if i % 2 else [record]) for i, record in enumerate(written)), return_exceptions=True
    )
    assert [isinstance(result, StoreError) for result in results] == [bool(i % 2) for i in range(20)]
    assert {s.id for s in (await store.records(attempt.id)).spans} == {record.id for record in written[::2]}


async def test_claims_at_once_give_each_caller_its_own(store: PostgresStore) -> None:
    await store.add(rollouts(10))
    limits = [1, 3, 0, 2, 9]
    claims = await asyncio.gather(*(store.claim(f"w{limit}", lease=60, limit=limit) for limit in limits))
    assert [len(claim) for claim in claims] == [1, 3, 0, 2, 4]
    assert all(attempt.worker == f"w{limit}" for limit, claim in zip(limits, claims, strict=True) for _, attempt in claim)
    assert len({attempt.id for claim in claims for _, attempt in claim}) == 10


async def test_leases_and_times_use_the_servers_clock(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.add(rollouts(2))
    now, ahead = time.time(), time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: ahead)  # this machine's clock is wrong
    ((_, attempt),) = await store.claim("w", lease=60)
    assert abs(attempt.started - now) < 30
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    assert len(await store.claim("thief", lease=60, limit=9)) == 1
    state = await store.finish(attempt.id, "succeeded")
    assert abs((state.attempts[0].finished or 0) - now) < 30
