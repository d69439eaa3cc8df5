"""A store arrives in another one, or in files and back, and nothing about it changes."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from test_serialization import json, maybe, number, samplings, small, text, tokens
from test_store_http import TOKEN, Served

from agentlightning.contracts.store import AttemptRecords, LightningStore, RolloutState, StoredRollout
from agentlightning.errors import StoreError, StoreVersionError
from agentlightning.stores import parquet, transfer
from agentlightning.stores.common import open_store
from agentlightning.stores.http_client import StoreClient
from agentlightning.stores.transfer import Copied, StoreSource, copy
from agentlightning.telemetry.store_app import store_app
from agentlightning.testing.store import ended_rollout, rollouts
from agentlightning.types import Attempt, Call, Completion, Policy, Reward, Rollout, Span, Task, new_id
from agentlightning_sqlite.store import SQLiteStore

LEASE = 600.0
BIG = st.integers(-(2**63), 2**63 - 1)


async def everything(store: LightningStore) -> Any:
    """All that a store returns, without sequence numbers."""
    orders = [(await store.list(limit=1000, order=order))[0] for order in ("added", "changed")]
    reads = [(replace(state, seq=0), records) for state, records in [await store.read(s.rollout.id) for s in orders[0]]]
    return [[state.rollout.id for state in states] for states in orders], reads, await store.policies()


async def filled(store: LightningStore, count: int = 12) -> LightningStore:
    """A store with rollouts in every state, whose ends have another order than their starts."""
    await store.add(rollouts(count, step=3))
    claimed = await store.claim("w", lease=LEASE, limit=count - 2)
    statuses = ("succeeded", "failed", "timed_out", "cancelled")
    for number_, (_, attempt) in enumerate(reversed(claimed[:-1])):
        _, (records,) = ended_rollout(turns=3)
        own: list[Any] = [*records.calls, *records.completions, *records.spans, *records.rewards]
        await store.record([replace(record, attempt_id=attempt.id) for record in own])
        await store.finish(attempt.id, statuses[number_ % 4], error=None, retry=number_ == 1)  # type: ignore[arg-type]
    await store.begin(rollouts(1, mode="production")[0], "me", lease=LEASE)
    for version in range(3):
        await store.publish(Policy(version=version, base="tiny", uri=f"file:/{version}"))
    return store


def no_reward(stored: StoredRollout) -> None:
    return None


async def test_a_copy_reads_like_its_source(tmp_path: Path) -> None:
    source, target = await filled(SQLiteStore(tmp_path / "a.db")), open_store("memory:")
    heard: list[tuple[int, int]] = []
    copied = await copy(StoreSource(source), target, report=lambda copied: heard.append((copied.announced, copied.filled)))
    assert copied == Copied(announced=13, filled=13)
    assert heard[-1] == (13, 13)
    assert await everything(target) == await everything(source)
    assert await everything(target) == await everything(source)
    await copy(StoreSource(source), target)
    assert await everything(target) == await everything(source)
    (last,) = [state.attempts[-1] for state in (await source.list(status=["running"], mode="train"))[0]]
    assert (await target.attempt(key=last.key))[1] == last
    await source.close()


async def test_a_second_copy_brings_later_rewards_and_ends(tmp_path: Path) -> None:
    source, target = await filled(SQLiteStore(tmp_path / "a.db")), SQLiteStore(tmp_path / "b.db")
    await copy(StoreSource(source), target)
    ended = (await source.list(status=["succeeded"]))[0][0]
    await source.record([Reward(attempt_id=ended.attempts[0].id, value=3.0, source="customer")])
    (running,) = (await source.list(status=["running"], mode="train"))[0]
    await source.finish(running.attempts[-1].id, "succeeded")
    await source.add(rollouts(1))
    await copy(StoreSource(source), target)
    assert (await everything(target))[1] == (await everything(source))[1]
    for store in (source, target):
        await store.close()


@pytest.mark.parametrize("resume", [True, False])
async def test_a_copy_that_was_cut_off_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool) -> None:
    monkeypatch.setattr(transfer, "PAGE", 4)
    monkeypatch.setattr(transfer, "RECORDS", 10)
    source, target = await filled(SQLiteStore(tmp_path / "a.db"), 30), SQLiteStore(tmp_path / "b.db")

    def stop(copied: Copied) -> None:
        if copied.filled == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await copy(StoreSource(source), target, report=stop)
    assert 0 < len((await target.list(limit=1000, status=["succeeded", "failed", "cancelled"]))[0]) < 28
    copied = await copy(StoreSource(source), target, resume=resume)
    assert copied.filled == 31
    assert (copied.skipped > 5) == resume
    assert await everything(target) == await everything(source)
    for store in (source, target):
        await store.close()


async def test_rollouts_are_copied_over_http_in_both_directions(tmp_path: Path) -> None:
    source, middle, target = await filled(SQLiteStore(tmp_path / "a.db")), SQLiteStore(tmp_path / "b.db"), open_store("memory:")
    with Served(store_app(middle, TOKEN)) as served:
        client = StoreClient(served.url, TOKEN)
        await copy(StoreSource(source), client)
        await copy(StoreSource(client), target)
        assert await client.delete([(await client.list(status=["succeeded"]))[0][0].rollout.id]) in (0, 1)
        await client.close()
    assert await everything(target) == await everything(source)
    for store in (source, middle):
        await store.close()


async def test_readers_that_follow_a_target_see_every_rollout_end(tmp_path: Path) -> None:
    source, target = await filled(SQLiteStore(tmp_path / "a.db")), SQLiteStore(tmp_path / "b.db")
    expected = {state.rollout.id for state in (await source.list(status=["succeeded"]))[0]}

    async def follow() -> set[str]:
        found, cursor = set[str](), 0
        while found != expected:
            await target.wait(cursor, timeout=10)
            states, cursor = await target.list(after=cursor, order="changed")
            found |= {state.rollout.id for state in states if state.status == "succeeded"}
        return found

    follower = asyncio.ensure_future(follow())
    await asyncio.sleep(0.05)
    await copy(StoreSource(source), target)
    assert await asyncio.wait_for(follower, 20) == expected
    for store in (source, target):
        await store.close()


# --- files -------------------------------------------------------------------------------------------------------------------------


@st.composite
def stored_rollouts(draw: Any) -> StoredRollout:
    """Anything that a store may hold about a rollout."""
    rollout = Rollout(
        id=new_id(), task=Task(draw(text), draw(json)), mode=draw(st.sampled_from(["train", "eval", "production"])), group=draw(maybe),
        index=draw(small), step=draw(st.none() | small), seed=draw(BIG), sampling=draw(st.none() | samplings), created=draw(number),
    )  # fmt: skip
    records: list[AttemptRecords] = []
    for place in range(draw(st.integers(0, 2))):
        attempt = Attempt(
            id=new_id(), rollout_id=rollout.id, number=place + 1, key=new_id(), worker=draw(text), status="failed",
            started=draw(st.floats(allow_nan=False)), finished=draw(st.none() | st.floats(allow_nan=False)), error=draw(maybe),
        )  # fmt: skip
        response = draw(tokens)
        completion = Completion(
            id=new_id(), call_id=draw(text), attempt_id=attempt.id, prompt_ids=draw(tokens), response_ids=response,
            logprobs=draw(st.none() | st.just([0.5] * len(response))), versions=range(len(response)), sampling=draw(samplings),
            finish_reason="stop", message=draw(json | st.builds(lambda content: {"content": content}, st.text())), created=draw(number),
            demonstrated=draw(st.booleans()),
        )  # fmt: skip
        span = Span(
            id=new_id(), attempt_id=attempt.id, kind="tool", name=draw(text), started=draw(number), ended=draw(st.none() | number),
            attributes=draw(st.dictionaries(text, json, max_size=3)),
        )  # fmt: skip
        call = Call(
            id=new_id(), attempt_id=attempt.id, index=draw(small), status="completed", detail=draw(maybe), after=draw(maybe),
            messages=draw(json), tools_from=draw(maybe), tool_schemas=draw(json), thread_start=draw(st.none() | small),
        )  # fmt: skip
        reward = Reward(id=new_id(), attempt_id=attempt.id, value=draw(number), span_id=draw(maybe))
        records.append(AttemptRecords(attempt=attempt, calls=(call,), completions=(completion,), spans=(span,), rewards=(reward,)))
    status = "failed" if records else draw(st.sampled_from(["queued", "cancelled"]))
    return RolloutState(rollout=rollout, status=status, attempts=tuple(r.attempt for r in records)), tuple(records)


@given(st.lists(stored_rollouts(), max_size=6), st.randoms())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_an_export_and_its_import_lose_nothing(stored: list[StoredRollout], random: Any) -> None:
    async def check() -> None:
        source, target = open_store("memory:"), open_store("memory:")
        await source.put([(RolloutState(rollout=state.rollout, status="running"), ()) for state, _ in stored])
        random.shuffle(stored)
        await source.put(stored)
        with tempfile.TemporaryDirectory() as folder:
            assert await parquet.export(source, Path(folder) / "out", reward=no_reward) == len(stored)
            with_files = parquet.ParquetSource(Path(folder) / "out")
            await copy(with_files, target)
            with_files.close()
        assert repr(await everything(target)) == repr(await everything(source))  # NaN equals NaN

    asyncio.run(check())


async def test_an_export_of_many_row_groups_keeps_both_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP", 5)
    monkeypatch.setattr(transfer, "PAGE", 7)
    source, target = await filled(SQLiteStore(tmp_path / "a.db"), 41), SQLiteStore(tmp_path / "b.db")
    counts: list[int] = []
    await parquet.export(source, tmp_path / "out", reward=no_reward, report=counts.append)
    assert counts[:2] == [5, 10]
    assert counts[-1] == 42
    for _ in range(2):
        await copy(parquet.ParquetSource(tmp_path / "out"), target)
        assert await everything(target) == await everything(source)
    for store in (source, target):
        await store.close()


async def test_an_export_has_the_columns_that_its_page_documents(tmp_path: Path) -> None:
    source = await filled(open_store("memory:"))
    await parquet.export(source, tmp_path / "out", reward=lambda stored: 0.25)
    completions = pyarrow.parquet.read_table(tmp_path / "out" / "completions.parquet").to_pylist()
    row = completions[0]
    assert row["rollout_id"] == (await source.attempt(id=row["attempt_id"]))[0].id
    assert (row["mode"], row["step"], row["task_id"][0]) == ("train", 3, "t")
    assert {row["reward"] for row in completions} == {0.25, None}  # None: of an attempt that was repeated
    assert row["response_tokens"] == len(row["response_ids"]) == len(row["logprobs"])
    page = (Path(__file__).parents[3] / "docs" / "records.md").read_text()
    for file in sorted((tmp_path / "out").iterdir()):
        names = pyarrow.parquet.read_schema(file).names
        assert [name for name in names if f"`{name}`" not in page] == [], file.name


async def test_other_folders_and_exports_of_other_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = await filled(open_store("memory:"))
    with pytest.raises(StoreError, match=r"Cannot read .*agl store export"):
        parquet.ParquetSource(tmp_path)
    await parquet.export(source, tmp_path / "out", reward=no_reward)
    with pytest.raises(StoreError, match="exists already"):
        await parquet.export(source, tmp_path / "out", reward=no_reward)
    version = parquet.VERSION
    for reads, advice in ((version - 1, "Upgrade agentlightning"), (version + 1, "Export the store again")):
        monkeypatch.setattr(parquet, "VERSION", reads)
        with pytest.raises(StoreVersionError, match=rf"has version {version}, and this agentlightning reads version {reads}\. {advice}"):
            parquet.ParquetSource(tmp_path / "out")


async def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(stored: StoredRollout) -> float:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        await parquet.export(await filled(open_store("memory:")), tmp_path / "out", reward=fails)
    assert list(tmp_path.iterdir()) == []
