from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

import agentlightning as agl
from agentlightning.capture.recorder import Recorder, checked_reward, current, use
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import LightningError, RewardError, StoreError
from agentlightning.types import LLM, Attempt, Record, Reward, Rollout, Span, Task


class Store:
    """The one method of a store that a recorder calls."""

    def __init__(self) -> None:
        self.batches: list[list[Record]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def record(self, records: Sequence[Record]) -> None:
        await self.open.wait()
        if self.error is not None:
            raise self.error
        self.batches.append(list(records))

    @property
    def values(self) -> list[float]:
        return [cast(Reward, record).value for batch in self.batches for record in batch]


def new_recorder(store: Store) -> Recorder:
    rollout = Rollout(task=Task("t", None), mode="train")
    attempt = Attempt(id="a", rollout_id=rollout.id, number=1, key="k", worker="w", status="running", started=0.0)
    return Recorder(cast(LightningStore, store), rollout, attempt, LLM("m", "u", "k"))


def number(value: float) -> Reward:
    return Reward(attempt_id="a", value=value)


async def test_a_flush_returns_when_everything_added_is_stored_in_order() -> None:
    store = Store()
    r = new_recorder(store)
    await r.flush()
    for k in range(100):
        r.add(number(k))
    assert store.values == []
    await r.flush()
    assert store.values == list(range(100))
    await r.close()


async def test_records_are_stored_without_a_flush_and_many_at_a_time() -> None:
    store = Store()
    r = new_recorder(store)
    store.open.clear()
    r.add(number(0))
    await asyncio.sleep(0.01)
    for k in range(1, 50):
        r.add(number(k))
    store.open.set()
    async with asyncio.timeout(5):
        while len(store.values) < 50:
            await asyncio.sleep(0.001)
    assert [len(batch) for batch in store.batches] == [1, 49]
    await r.close()


async def test_records_from_many_threads_are_all_stored_each_threads_in_order() -> None:
    store = Store()
    r = new_recorder(store)

    def work(thread: int) -> None:
        for k in range(200):
            r.add(number(thread * 1000 + k))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        await r.flush()
        await asyncio.sleep(0)
    await r.close()
    assert len(store.values) == 1600
    for k in range(8):
        own = [value for value in store.values if value // 1000 == k]
        assert own == sorted(own)


async def test_a_store_that_fails_is_told_to_who_flushes_and_to_who_adds_next() -> None:
    store = Store()
    r = new_recorder(store)
    store.error = StoreError("the disk is full")
    r.add(number(1))
    r.add(number(2))
    with pytest.raises(LightningError, match="lost 2 records: the disk is full"):
        await r.flush()
    with pytest.raises(LightningError, match="lost a record"):
        r.add(number(3))
    with pytest.raises(LightningError, match="the disk is full"):
        await r.close()


async def test_a_flush_that_waits_hears_of_the_failure() -> None:
    store = Store()
    r = new_recorder(store)
    store.open.clear()
    r.add(number(1))
    waiting = asyncio.create_task(r.flush())
    await asyncio.sleep(0.01)
    store.error = StoreError("gone")
    store.open.set()
    with pytest.raises(LightningError, match="gone"):
        await asyncio.wait_for(waiting, 5)


async def test_a_full_buffer_is_an_error_and_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "LIMIT", 3)
    store = Store()
    r = new_recorder(store)
    store.open.clear()
    for k in range(3):
        r.add(number(k))
    with pytest.raises(LightningError, match="3 records that the store has not taken"):
        r.add(number(9))
    store.open.set()
    await r.flush()
    r.add(number(3))
    await r.close()
    assert store.values == [0, 1, 2, 3]


async def test_a_long_buffer_is_written_in_several_calls_in_order() -> None:
    store = Store()
    r = new_recorder(store)
    for k in range(1000):
        r.add(number(k))
    await r.close()
    assert store.values == [*range(1000)]
    assert max(len(batch) for batch in store.batches) == Recorder.TOGETHER


async def test_a_record_that_comes_after_the_end_is_refused_aloud() -> None:
    store = Store()
    r = new_recorder(store)
    await r.close()
    with pytest.raises(LightningError, match="is closed, so it takes no reward"):
        r.add(number(1))


async def test_the_current_recorder_reaches_tasks_and_threads_and_ends_with_the_block() -> None:
    store = Store()
    one, two = new_recorder(store), new_recorder(store)

    async def inner(own: Recorder) -> None:
        with use(own):
            await asyncio.sleep(0.001)
            assert current() is own
            assert await asyncio.to_thread(current) is own
            assert await asyncio.create_task(asyncio.to_thread(current)) is own

    await asyncio.gather(inner(one), inner(two))
    assert current() is None
    await one.close()
    await two.close()


async def test_rewards_and_notes_are_recorded_in_the_current_attempt() -> None:
    store = Store()
    r = new_recorder(store)
    span = Span(attempt_id="a", kind="tool", name="calc")
    with use(r):
        made = [agl.reward(1), agl.reward(0.5, name="format", span=span, source="judge")]
        made.append(agl.reward(0.25, call="c1"))
        text = agl.note("thinking", depth=2)
        with pytest.raises(RewardError, match="names a span and a call"):
            agl.reward(0.25, span=span, call="c1")
    await r.close()
    assert store.batches == [[*made, text]]
    assert (made[1].span_id, made[1].source, made[1].name) == (span.id, "judge", "format")
    assert [(each.span_id, each.call_id) for each in made] == [(None, None), (span.id, None), (None, "c1")]
    assert (text.kind, text.name, text.attributes) == ("note", "thinking", {"depth": 2})


def test_a_reward_outside_a_rollout_says_where_to_call_it() -> None:
    with pytest.raises(LightningError, match=r"agl\.reward\(\) was called outside a rollout\. .*agl\.rollout"):
        agl.reward(1.0)
    with pytest.raises(LightningError, match=r"agl\.note\(\)"):
        agl.note("x")


@pytest.mark.parametrize("value", [1, 0.5, True, np.float32(0.25), np.int64(3)])
def test_any_finite_number_is_a_reward(value: Any) -> None:
    assert checked_reward(value) == float(value)
    assert type(checked_reward(value)) is float


@pytest.mark.parametrize("value", [None, "1.0", float("nan"), float("-inf"), [1.0], np.ones(2), 10**400, 1j])
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(RewardError, match="Use a finite number"):
        checked_reward(value)
