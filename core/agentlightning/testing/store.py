"""The contract of `LightningStore` as tests for any implementation.

    class TestMyStore(StoreContract):
        @pytest.fixture
        async def store(self, tmp_path):
            store = open_my_store(tmp_path)
            yield store
            await store.close()

The tests are coroutines. Run them with pytest-asyncio in auto mode, or mark the class with `pytestmark = pytest.mark.asyncio`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from msgspec.structs import replace

from agentlightning.contracts.store import AttemptRecords, LightningStore, RolloutState, StoredRollout
from agentlightning.errors import LeaseLost, NotFound, StoreError, WireError
from agentlightning.types import (
    Attempt,
    AttemptStatus,
    Call,
    Completion,
    Policy,
    Reward,
    Rollout,
    RolloutStatus,
    Sampling,
    Span,
    Task,
    ints,
    new_id,
)

LEASE = 60.0


@contextmanager
def refused(error: type[Exception]) -> Generator[None]:
    """Fail unless the block raises `error`."""
    try:
        yield
    except error:
        return
    raise AssertionError(f"no {error.__name__} was raised")


def rollouts(count: int, **settings: Any) -> list[Rollout]:
    """Rollouts of `count` tasks, one of each."""
    fields: dict[str, Any] = {"mode": "train", **settings}
    return [Rollout(task=Task(f"t{i}", {"question": i}), **fields) for i in range(count)]


def completion(attempt_id: str, prompt: list[int], response: list[int], **settings: Any) -> Completion:
    """A completion with these tokens."""
    fields: dict[str, Any] = {
        "call_id": new_id(),
        "logprobs": -np.arange(len(response), dtype=np.float32),
        "versions": np.zeros(len(response), np.int32),
        "sampling": Sampling(seed=7),
        "finish_reason": "stop",
        "message": {"role": "assistant"},
    }
    fields.update(settings)
    return Completion(attempt_id=attempt_id, prompt_ids=ints(prompt), response_ids=ints(response), **fields)


def span(attempt_id: str, **settings: Any) -> Span:
    return Span(attempt_id=attempt_id, kind="tool", name="calculator", **settings)


def queued_state(rollout: Rollout) -> RolloutState:
    return RolloutState(rollout=rollout, status="queued")


def ended_rollout(status: Literal["succeeded", "failed"] = "succeeded", *, turns: int = 1, **settings: Any) -> StoredRollout:
    """A rollout as `read` returns it: one attempt, a conversation of `turns` completions, a span, and a reward."""
    (rollout,) = rollouts(1, **settings)
    attempt = Attempt(
        id=new_id(), rollout_id=rollout.id, number=1, key=f"agl-{new_id()}", worker="w", status=status, started=1.0, finished=2.0,
        error="boom" if status == "failed" else None,
    )  # fmt: skip
    completions: list[Completion] = []
    tokens, earlier = [1, 2], None
    for turn in range(turns):
        tokens = [*tokens, turn]
        completions.append(completion(attempt.id, tokens, [5, 6], continues=earlier))
        tokens, earlier = [*tokens, 5, 6], completions[-1].id
    calls = tuple(Call(id=c.call_id, attempt_id=attempt.id, index=i, status="completed") for i, c in enumerate(completions))
    records = AttemptRecords(
        attempt=attempt, calls=calls, completions=tuple(completions), spans=(span(attempt.id),),
        rewards=(Reward(attempt_id=attempt.id, value=0.5),),
    )  # fmt: skip
    return RolloutState(rollout=rollout, status=status, attempts=(attempt,)), (records,)


async def claimed(store: LightningStore) -> Attempt:
    """The running attempt of a new rollout."""
    await store.add(rollouts(1))
    ((_, attempt),) = await store.claim("w", lease=LEASE)
    return attempt


class StoreContract:
    """Subclass it and define a fixture `store` that returns an empty store."""

    # --- the queue -----------------------------------------------------------------------------------------------------------------

    async def test_rollouts_are_claimed_once_in_the_order_of_add(self, store: LightningStore) -> None:
        added = rollouts(5)
        await store.add(added)
        await store.add(added[:3])  # the same again
        first = await store.claim("w", lease=LEASE, limit=2)
        rest = await store.claim("w", lease=LEASE, limit=10)
        assert [rollout for rollout, _ in first + rest] == added
        assert await store.claim("w", lease=LEASE) == []
        attempts = [attempt for _, attempt in first + rest]
        assert len({attempt.key for attempt in attempts}) == len({attempt.id for attempt in attempts}) == 5
        assert all(a.number == 1 and a.status == "running" and a.worker == "w" and a.rollout_id == r.id for r, a in first + rest)

    async def test_a_repeated_claim_returns_the_attempts_of_the_first_while_they_run(self, store: LightningStore) -> None:
        added = rollouts(5)
        await store.add(added)
        first = await store.claim("w", lease=LEASE, limit=2, request="a")
        assert await store.claim("w", lease=LEASE, limit=2, request="a") == first
        other = await store.claim("w", lease=LEASE, request="b")
        assert [rollout.id for rollout, _ in [*first, *other]] == [rollout.id for rollout in added[:3]]
        await store.finish(first[0][1].id, "failed")
        assert await store.claim("w", lease=LEASE, limit=2, request="a") == first[1:]
        await store.finish(first[1][1].id, "succeeded")
        ((rollout, _),) = await store.claim("w", lease=LEASE, request="a")  # nothing of the first runs any more
        assert rollout.id == added[3].id
        assert await store.claim("w", lease=LEASE, request="none", modes=()) == []

    async def test_a_claim_can_be_limited_to_modes(self, store: LightningStore) -> None:
        train, val = rollouts(2), rollouts(2, mode="eval")
        await store.add([train[0], val[0], train[1], val[1]])
        assert [r.id for r, _ in await store.claim("w", lease=LEASE, limit=9, modes={"eval"})] == [val[0].id, val[1].id]
        assert await store.claim("w", lease=LEASE, modes=()) == []
        assert [r.id for r, _ in await store.claim("w", lease=LEASE, limit=9, modes=["train", "eval"])] == [train[0].id, train[1].id]

    async def test_many_claimers_never_get_the_same_attempt(self, store: LightningStore) -> None:
        await store.add(rollouts(60))

        async def work(name: str) -> list[str]:
            mine: list[str] = []
            while claimed := await store.claim(name, lease=LEASE, limit=2):
                for rollout, attempt in claimed:
                    mine.append(rollout.id)
                    await store.record([span(attempt.id)])
                    await store.finish(attempt.id, "succeeded")
            return mine

        taken = [id for ids in await asyncio.gather(*(work(f"w{i}") for i in range(8))) for id in ids]
        assert len(taken) == len(set(taken)) == 60
        states, _ = await store.list(limit=100)
        assert all(state.status == "succeeded" and len(state.attempts) == 1 for state in states)

    async def test_an_attempt_is_found_by_id_and_by_key(self, store: LightningStore) -> None:
        (added,) = rollouts(1)
        await store.add([added])
        ((_, attempt),) = await store.claim("w", lease=LEASE)
        assert await store.attempt(key=attempt.key) == await store.attempt(id=attempt.id) == (added, attempt)
        await store.finish(attempt.id, "failed", error="boom")
        assert (await store.attempt(key=attempt.key))[1].status == "failed"
        for wrong in ({"key": "agl-x"}, {"id": "x"}, {"key": attempt.id}, {"id": attempt.key}, {}):
            with refused(NotFound):
                await store.attempt(**wrong)

    async def test_the_prompts_of_a_rollout_reach_its_runner_and_its_reader(self, store: LightningStore) -> None:
        texts = {"system": "Answer.\nBriefly – ≤ 3 words.", "plan": ""}
        [rollout] = rollouts(1, prompts=texts)
        await store.add([rollout])
        [(claimed, attempt)] = await store.claim("w", lease=60)
        assert claimed.prompts == texts
        for kept in (
            (await store.read(rollout.id))[0].rollout,
            (await store.attempt(id=attempt.id))[0],
            (await store.list())[0][0].rollout,
        ):
            assert kept == rollout

    async def test_begin_adds_and_claims_and_is_never_queued(self, store: LightningStore) -> None:
        (rollout,) = rollouts(1, mode="production")
        attempt = await store.begin(rollout, "me", lease=LEASE)
        assert await store.claim("w", lease=LEASE) == []
        assert await store.begin(rollout, "me", lease=LEASE) == attempt
        with refused(StoreError):
            await store.begin(rollout, "another", lease=LEASE)
        state = await store.finish(attempt.id, "failed", retry=True)
        assert state.status == "failed"
        assert await store.claim("w", lease=LEASE) == []

    async def test_a_lease_is_more_than_nothing(self, store: LightningStore) -> None:
        with refused(StoreError):
            await store.claim("w", lease=0)

    # --- the end of attempts -------------------------------------------------------------------------------------------------------

    async def test_a_finished_attempt_ends_its_rollout(self, store: LightningStore) -> None:
        await store.add(rollouts(4))
        ends = {"succeeded": "succeeded", "failed": "failed", "timed_out": "failed", "cancelled": "cancelled"}
        for (_, attempt), (status, expected) in zip(await store.claim("w", lease=LEASE, limit=4), ends.items(), strict=True):
            state = await store.finish(attempt.id, status, error="why \ud800")  # type: ignore[arg-type]
            assert (state.status, state.attempts[0].status) == (expected, status)
            assert "why" in (state.attempts[0].error or "")
            assert (state.attempts[0].finished or 0) >= state.attempts[0].started > 0
            assert state.winner == state.attempts[0]
            assert await store.finish(attempt.id, status) == state  # type: ignore[arg-type]
            other = "failed" if status == "succeeded" else "succeeded"
            with refused(LeaseLost):
                await store.finish(attempt.id, other)
            with refused(LeaseLost):
                await store.heartbeat(attempt.id, lease=LEASE)
        assert await store.claim("w", lease=LEASE) == []
        with refused(NotFound):
            await store.finish("nobody", "failed")

    async def test_an_attempt_cannot_be_finished_as_running_nor_succeed_with_a_retry(self, store: LightningStore) -> None:
        attempt = await claimed(store)
        with refused(StoreError):
            await store.finish(attempt.id, "running")
        with refused(StoreError):
            await store.finish(attempt.id, "succeeded", retry=True)

    async def test_a_failed_attempt_is_tried_again_until_max_attempts(self, store: LightningStore) -> None:
        first, second = rollouts(2, max_attempts=3)
        await store.add([first, second])
        for number in (1, 2, 3):
            ((rollout, attempt),) = await store.claim("w", lease=LEASE)  # a retry comes before younger rollouts
            assert (rollout.id, attempt.number) == (first.id, number)
            state = await store.finish(attempt.id, "failed", retry=True)
            assert state.status == ("queued" if number < 3 else "failed")
        ((rollout, attempt),) = await store.claim("w", lease=LEASE)
        assert rollout.id == second.id
        assert state.winner == state.attempts[2]

    async def test_cancelled_attempts_do_not_count(self, store: LightningStore) -> None:
        (rollout,) = rollouts(1, max_attempts=2)
        await store.add([rollout])
        ends: list[tuple[AttemptStatus, RolloutStatus]] = [
            ("cancelled", "queued"), ("failed", "queued"), ("cancelled", "queued"), ("failed", "failed"),
        ]  # fmt: skip
        for status, expected in ends:
            ((_, attempt),) = await store.claim("w", lease=LEASE)
            assert (await store.finish(attempt.id, status, retry=True)).status == expected
        state, _ = await store.read(rollout.id)
        assert [attempt.number for attempt in state.attempts] == [1, 2, 3, 4]

    async def test_an_expired_lease_makes_a_new_attempt_and_the_old_one_is_lost(self, store: LightningStore) -> None:
        await store.add(rollouts(1))
        ((_, old),) = await store.claim("slow", lease=0.5)
        await store.record([span(old.id)])
        assert await store.claim("quick", lease=LEASE) == []
        await asyncio.sleep(0.55)
        ((rollout, new),) = await store.claim("quick", lease=LEASE)
        assert (new.number, new.worker) == (2, "quick")
        with refused(LeaseLost):
            await store.heartbeat(old.id, lease=LEASE)
        with refused(LeaseLost):
            await store.finish(old.id, "succeeded")
        late = span(old.id, started=1.0)
        await store.record([late])
        await store.finish(new.id, "succeeded")
        state, (of_old, of_new) = await store.read(rollout.id)
        assert [a.status for a in state.attempts] == ["lost", "succeeded"]
        assert state.winner is not None
        assert state.winner.id == new.id
        assert "slow" in (of_old.attempt.error or "")
        assert of_old.spans[1] == late  # its records stay readable, late ones too
        assert of_new.spans == ()

    async def test_leases_that_expire_max_attempts_times_fail_the_rollout(self, store: LightningStore) -> None:
        (rollout,) = rollouts(1, max_attempts=2)
        await store.add([rollout])
        for _ in range(2):
            await store.claim("w", lease=0.03)
            await asyncio.sleep(0.05)
        assert await store.claim("w", lease=LEASE) == []
        state, _ = await store.read(rollout.id)
        assert state.status == "failed"
        assert [a.status for a in state.attempts] == ["lost", "lost"]

    async def test_a_heartbeat_keeps_the_lease(self, store: LightningStore) -> None:
        await store.add(rollouts(1))
        ((_, attempt),) = await store.claim("w", lease=1.0)
        for _ in range(3):
            await asyncio.sleep(0.4)
            await store.heartbeat(attempt.id, lease=1.0)
            assert await store.claim("thief", lease=LEASE) == []
        await store.finish(attempt.id, "succeeded")
        with refused(NotFound):
            await store.heartbeat("nobody", lease=LEASE)

    async def test_cancel_ends_queued_and_running_rollouts_only(self, store: LightningStore) -> None:
        added = rollouts(4)
        await store.add(added)
        ((_, done), (_, running)) = await store.claim("w", lease=LEASE, limit=2)
        await store.finish(done.id, "succeeded")
        assert await store.cancel([r.id for r in added[:3]]) == 2
        assert await store.cancel([r.id for r in added[:3]]) == 0
        assert [s.status for s in (await store.list())[0]] == ["succeeded", "cancelled", "cancelled", "queued"]
        assert (await store.attempt(id=running.id))[1].status == "cancelled"
        with refused(LeaseLost):
            await store.finish(running.id, "succeeded")
        assert [r.id for r, _ in await store.claim("w", lease=LEASE, limit=9)] == [added[3].id]
        with refused(NotFound):
            await store.cancel([added[3].id, "nobody"])
        assert (await store.read(added[3].id))[0].status == "running"

    # --- records -------------------------------------------------------------------------------------------------------------------

    async def test_records_come_back_equal_in_order_and_by_kind(self, store: LightningStore) -> None:
        await store.add(rollouts(1))
        ((rollout, attempt),) = await store.claim("w", lease=LEASE)
        text = {"role": "user", "content": "é\ud800", "parts": [{"big": 10**30, "none": None}]}
        call = Call(
            id=new_id(), attempt_id=attempt.id, index=0, status="completed", choices=1, request_hash="h", after="earlier",
            messages=[[0, 2], text], tools_from="first", tool_schemas=[{"type": "function", "parameters": {}}], thread_start=1,
        )  # fmt: skip
        nan = completion(attempt.id, [1, 2], [3, 4], logprobs=np.array([np.nan, -1], np.float32), call_id=call.id)
        empty = completion(attempt.id, [], [], logprobs=None)
        spans = [span(attempt.id, attributes={"n": i, "deep": [{"x": None, "big": 10**30}], "text": "é\ud800"}) for i in range(3)]
        reward = Reward(attempt_id=attempt.id, value=0.5, name="return", call_id=call.id)
        shared = span(attempt.id, id=call.id)  # a framework's span may have its call's id
        await store.record([spans[0], call, nan])
        await store.record([empty, spans[1], reward, spans[2], shared])
        await store.record([])
        written = await store.records(attempt.id)
        assert written.attempt == attempt
        assert written.calls == (call,)
        assert written.completions == (nan, empty)
        assert written.spans == (*spans, shared)
        assert written.rewards == (reward,)
        assert not written.completions[0].prompt_ids.flags.writeable
        assert (await store.read(rollout.id))[1] == (written,)

    async def test_the_first_value_under_an_id_stays(self, store: LightningStore) -> None:
        attempt = await claimed(store)
        reward = Reward(attempt_id=attempt.id, value=1.0)
        await asyncio.gather(*(store.record([reward, span(attempt.id, id="s")]) for _ in range(5)))
        await store.record([replace(reward, value=2.0), span(attempt.id, id="new")])
        written = await store.records(attempt.id)
        assert written.rewards == (reward,)
        assert [s.id for s in written.spans] == ["s", "new"]

    async def test_records_are_written_all_or_none(self, store: LightningStore) -> None:
        attempt = await claimed(store)
        with refused(NotFound):
            await store.record([span(attempt.id), span("nobody")])
        with refused(WireError):
            await store.record([span(attempt.id), span(attempt.id, attributes={"x": object()})])
        assert (await store.records(attempt.id)).spans == ()
        with refused(NotFound):
            await store.records("nobody")
        with refused(NotFound):
            await store.read("nobody")

    async def test_a_callers_later_edits_do_not_change_records(self, store: LightningStore) -> None:
        attempt = await claimed(store)
        content = {"steps": [1]}
        await store.record([span(attempt.id, attributes=content)])
        content["steps"].append(2)
        assert (await store.records(attempt.id)).spans[0].attributes == {"steps": [1]}

    async def test_late_rewards_are_accepted(self, store: LightningStore) -> None:
        attempt = await claimed(store)
        await store.finish(attempt.id, "succeeded")
        late = Reward(attempt_id=attempt.id, value=-1, source="a person")
        await store.record([late])
        assert (await store.records(attempt.id)).rewards == (late,)

    async def test_a_conversation_comes_back_with_full_prompts(self, store: LightningStore) -> None:
        await store.add(rollouts(2))
        ((_, attempt), (_, other)) = await store.claim("w", lease=LEASE, limit=2)
        turns: list[Completion] = [completion(attempt.id, [1, 2, 3], [4, 5])]
        for number in range(6):
            last = turns[-1]
            prompt = [*last.prompt_ids.tolist(), *last.response_ids.tolist(), 100 + number]
            turns.append(completion(attempt.id, prompt, [200 + number], continues=last.id))
        branch = completion(attempt.id, [1, 2, 3, 4, 5, 9], [7], continues=turns[0].id)
        exact = completion(attempt.id, [1, 2, 3, 4, 5], [8], continues=turns[0].id)
        edited = completion(attempt.id, [1, 2, 0, 4, 5, 9], [7], continues=turns[0].id)  # no prefix after all
        shorter = completion(attempt.id, [1, 2, 3], [7], continues=turns[0].id)
        unknown = completion(attempt.id, [1, 2, 3, 4, 5, 9], [7], continues="nobody")
        itself = completion(attempt.id, [1], [7], id="me", continues="me")
        foreign = completion(other.id, [1, 2, 3, 4, 5, 9], [7], continues=turns[0].id)
        await store.record(turns[:3])
        for turn in turns[3:]:
            await store.record([turn])
        await store.record([branch, exact, edited, shorter, unknown, itself, foreign])
        assert (await store.records(attempt.id)).completions == (*turns, branch, exact, edited, shorter, unknown, itself)
        assert (await store.records(other.id)).completions == (foreign,)

    # --- lists and waiting ---------------------------------------------------------------------------------------------------------

    async def test_list_pages_through_in_the_order_of_add(self, store: LightningStore) -> None:
        added = rollouts(25)
        await store.add(added[:10])
        await store.add(added[10:])
        seen: list[RolloutState] = []
        cursor = 0
        while True:
            page, cursor = await store.list(after=cursor, limit=10)
            if not page:
                break
            seen += page
            await store.claim("w", lease=LEASE)  # a change of status moves nothing
        assert [state.rollout for state in seen] == added
        assert (await store.list(after=cursor))[1] == cursor

    async def test_newest_lists_the_latest_rollouts_first_and_a_page_at_a_time(self, store: LightningStore) -> None:
        added = [*rollouts(9), *rollouts(4, mode="eval"), *rollouts(9, step=7)]
        await store.add(added)
        ids = [rollout.id for rollout in reversed(added)]
        page, cursor = await store.list(order="newest", limit=10)
        await store.add(rollouts(3))  # newer ones do not move the next page
        rest, end = await store.list(order="newest", after=cursor, limit=100)
        assert [state.rollout.id for state in page + rest] == ids
        assert (await store.list(order="newest", after=end)) == ([], end)
        selections: list[dict[str, Any]] = [
            {"status": ["queued"]},
            {"status": ["queued", "running"], "mode": "train"},
            {"step": 7},
            {"mode": "train"},
        ]
        for wanted in selections:
            forward, _ = await store.list(**wanted)
            backward, _ = await store.list(**wanted, order="newest")
            assert backward == forward[::-1]

    async def test_list_selects(self, store: LightningStore) -> None:
        a, b = rollouts(2, group="g", step=1)
        (c,) = rollouts(1, group="h", step=2, mode="eval")
        await store.add([a, b, c])
        await store.claim("w", lease=LEASE)

        async def ids(**wanted: Any) -> list[str]:
            return [state.rollout.id for state in (await store.list(**wanted))[0]]

        assert await ids(group="g") == [a.id, b.id]
        assert await ids(step=2) == await ids(mode="eval") == [c.id]
        assert await ids(status=["running"]) == [a.id]
        assert await ids(status={"queued", "running"}, group="g", step=1, mode="train") == [a.id, b.id]
        assert await ids(status=()) == await ids(group="nobody") == await ids(limit=0) == []
        assert await ids(status=["queued"], order="changed") == [b.id, c.id]

    async def test_counts_tell_the_work_by_mode_and_the_lost_attempts(self, store: LightningStore) -> None:
        await store.add([*rollouts(3), *rollouts(1, mode="eval")])
        await store.begin(rollouts(1, mode="production")[0], "w", lease=LEASE)
        claimed = await store.claim("w", lease=0.5, limit=2)
        counts = await store.counts()
        assert (counts.queued, counts.running) == ({"train": 1, "eval": 1}, {"train": 2, "production": 1})
        await asyncio.sleep(0.55)
        await store.claim("w", lease=LEASE, limit=1)
        for _, attempt in claimed:
            with refused(LeaseLost):
                await store.finish(attempt.id, "succeeded")
        counts = await store.counts()
        assert (counts.queued, counts.running, counts.lost) == ({"train": 2, "eval": 1}, {"train": 1, "production": 1}, 2)

    async def test_a_reader_of_changes_sees_every_change(self, store: LightningStore) -> None:
        await store.add(rollouts(6))
        page, cursor = await store.list(order="changed")
        assert [state.status for state in page] == ["queued"] * 6
        (_, one), (_, two) = await store.claim("w", lease=LEASE, limit=2)
        page, cursor = await store.list(after=cursor, order="changed")
        assert [state.attempts[-1].id for state in page] == [one.id, two.id]
        await store.finish(two.id, "succeeded")
        await store.finish(one.id, "failed", retry=True)
        first, cursor = await store.list(after=cursor, order="changed", limit=1)
        second, cursor = await store.list(after=cursor, order="changed", limit=1)
        assert [state.status for state in first + second] == ["succeeded", "queued"]
        assert [state.seq for state in first + second] == sorted(state.seq for state in first + second)
        assert (await store.list(after=cursor, order="changed")) == ([], cursor)
        assert await store.wait(0, timeout=0) == cursor

    async def test_wait_returns_within_a_moment_of_each_change(self, store: LightningStore) -> None:
        assert await store.wait(0, timeout=0) == 0
        start = time.monotonic()
        assert await store.wait(0, timeout=0.1) == 0
        assert 0.09 < time.monotonic() - start < 2
        (rollout,) = rollouts(1)
        seq = 0
        attempt_id = ""
        delays: list[float] = []
        for change in ("add", "claim", "finish", "claim", "cancel"):
            waiting = [asyncio.ensure_future(store.wait(seq, timeout=10)) for _ in range(3)]
            await asyncio.sleep(0.05)
            assert not any(future.done() for future in waiting)
            match change:
                case "add":
                    await store.add([rollout])
                case "claim":
                    ((_, attempt),) = await store.claim("w", lease=LEASE)
                    attempt_id = attempt.id
                case "finish":
                    await store.finish(attempt_id, "failed", retry=True)
                case _:
                    await store.cancel([rollout.id])
            start = time.monotonic()
            (new,) = set(await asyncio.gather(*waiting))
            delays.append(time.monotonic() - start)
            assert new > seq
            seq = new
        assert sorted(delays)[2] < 0.1, delays  # the median: a busy machine may be late once
        assert await store.wait(seq - 1) == seq  # a past change returns at once

    async def test_wait_for_a_status_sleeps_through_the_others(self, store: LightningStore) -> None:
        one, two = rollouts(2)
        await store.add([one])
        assert await store.wait(0, timeout=10, status=["queued"]) == 1  # a past change returns at once
        assert await store.wait(0, timeout=0, status=["failed"]) == 1
        queued = asyncio.ensure_future(store.wait(1, timeout=20, status=["queued"]))
        ended = asyncio.ensure_future(store.wait(1, timeout=20, status=["failed", "cancelled"]))
        await asyncio.sleep(0.05)
        ((_, attempt),) = await store.claim("w", lease=LEASE)
        await asyncio.sleep(0.3)
        assert not queued.done()
        assert not ended.done()
        await store.finish(attempt.id, "failed", retry=True)
        assert await queued == 3
        await store.cancel([one.id])
        assert await ended == 4
        queued = asyncio.ensure_future(store.wait(4, timeout=20, status=["queued"]))
        await asyncio.sleep(0.05)
        await store.put([ended_rollout()])
        await asyncio.sleep(0.3)
        assert not queued.done()
        await store.put([(queued_state(two), ())])
        assert await queued > 5

    async def test_wait_for_a_status_sees_a_lease_expire(self, store: LightningStore) -> None:
        await store.add(rollouts(1))
        await store.claim("w", lease=0.5)
        assert await store.wait(2, timeout=10, status=["queued"]) == 3

    async def test_wait_sees_a_lease_expire(self, store: LightningStore) -> None:
        await store.add(rollouts(1))
        await store.claim("w", lease=0.5)
        start = time.monotonic()
        assert await store.wait(2, timeout=10) == 3
        assert time.monotonic() - start < 3
        assert (await store.list())[0][0].status == "queued"

    async def test_a_cancelled_wait_disturbs_nobody(self, store: LightningStore) -> None:
        gone, stays = asyncio.ensure_future(store.wait(0)), asyncio.ensure_future(store.wait(0, timeout=10))
        await asyncio.sleep(0.05)
        gone.cancel()
        await store.add(rollouts(1))
        assert await stays == 1

    async def test_event_loops_in_two_threads_share_a_store(self, store: LightningStore) -> None:
        await store.add(rollouts(20))
        failures: list[BaseException] = []

        async def work() -> None:
            while claimed := await store.claim("thread", lease=LEASE):
                await store.record([span(claimed[0][1].id)])
                await store.finish(claimed[0][1].id, "succeeded")
            await store.wait(60, timeout=10)  # 20 added, claimed, finished: told by the other loop

        def run() -> None:
            try:
                asyncio.run(work())
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while claimed := await store.claim("main", lease=LEASE):
            await store.finish(claimed[0][1].id, "succeeded")
        seq = 0
        while seq < 60:
            seq = await store.wait(seq, timeout=10)
        await store.add(rollouts(1))
        await asyncio.to_thread(thread.join, 5)
        assert not thread.is_alive()
        assert failures == []
        assert all(state.status == "succeeded" for state in (await store.list(limit=20))[0])

    # --- copies and deletion --------------------------------------------------------------------------------------------------------

    async def test_put_keeps_everything_that_read_returned(self, store: LightningStore) -> None:
        stored = [ended_rollout(turns=3), ended_rollout("failed"), *((queued_state(rollout), ()) for rollout in rollouts(1))]
        await store.put(stored)
        await store.put(stored)  # the same again
        for state, records in stored:
            state_here, records_here = await store.read(state.rollout.id)
            assert (replace(state_here, seq=0), records_here) == (state, records)
        for state, _ in stored[:2]:
            assert await store.attempt(key=state.attempts[0].key) == (state.rollout, state.attempts[0])
        assert [s.rollout.id for s in (await store.list())[0]] == [state.rollout.id for state, _ in stored]
        assert [rollout.id for rollout, _ in await store.claim("w", lease=LEASE, limit=9)] == [stored[2][0].rollout.id]

    async def test_put_announces_first_and_fills_in_the_order_of_the_end(self, store: LightningStore) -> None:
        one, two = ended_rollout(), ended_rollout()
        await store.put([(RolloutState(rollout=state.rollout, status="running"), ()) for state, _ in (one, two)])
        assert await store.claim("w", lease=LEASE) == []
        seq = await store.wait(0, timeout=0)
        await store.put([two])
        assert await store.wait(seq, timeout=5) > seq
        await store.put([one])
        ids = [state.rollout.id for state, _ in (one, two)]
        assert [s.rollout.id for s in (await store.list())[0]] == ids
        assert [s.rollout.id for s in (await store.list(order="changed"))[0]] == ids[::-1]

    async def test_put_brings_the_end_of_what_was_running_and_records_that_came_later(self, store: LightningStore) -> None:
        state, (records,) = ended_rollout()
        running = replace(records.attempt, status="running", finished=None)
        early = RolloutState(rollout=state.rollout, status="running", attempts=(running,))
        await store.put([(early, (AttemptRecords(attempt=running),))])
        await store.heartbeat(running.id, lease=LEASE)
        await store.put([(state, (records,))])
        late = Reward(attempt_id=running.id, value=2.0, source="customer")
        later = replace(records, rewards=(*records.rewards, late))
        await store.put([(state, (later,))])
        await store.put([(early, (AttemptRecords(attempt=running),))])  # an old copy changes nothing
        state_here, records_here = await store.read(state.rollout.id)
        assert (replace(state_here, seq=0), records_here) == (state, (later,))

    async def test_put_refuses_an_attempt_that_differs_and_stores_nothing(self, store: LightningStore) -> None:
        state, records = ended_rollout()
        await store.put([(state, records)])
        other = replace(state.attempts[0], id=new_id(), key="agl-other")
        with refused(StoreError):
            await store.put([ended_rollout(), (replace(state, attempts=(other,)), (AttemptRecords(attempt=other),))])
        assert len((await store.list())[0]) == 1

    async def test_a_running_attempt_that_was_put_expires_like_any_other(self, store: LightningStore) -> None:
        state, (records,) = ended_rollout()
        running = replace(records.attempt, status="running", finished=None)
        await store.put([(RolloutState(rollout=state.rollout, status="running", attempts=(running,)), (AttemptRecords(attempt=running),))])
        await store.heartbeat(running.id, lease=0.01)
        await asyncio.sleep(0.05)
        ((rollout, attempt),) = await store.claim("w", lease=LEASE)
        assert (rollout, attempt.number) == (state.rollout, 2)

    async def test_deletion_spares_what_a_step_in_progress_needs(self, store: LightningStore) -> None:
        old = ended_rollout(turns=3)
        same_group, same_step = ended_rollout(group="g", step=None), ended_rollout(group="h", step=7)
        await store.put([old, same_group, same_step])
        await store.add(waiting := [*rollouts(1, group="g"), *rollouts(1, group="k", step=7)])
        seq = await store.wait(0, timeout=0)
        ids = [state.rollout.id for state, _ in (old, same_group, same_step)] + [rollout.id for rollout in waiting] + ["unknown"]
        assert await store.delete(ids) == 1
        with refused(NotFound):
            await store.read(old[0].rollout.id)
        with refused(NotFound):
            await store.attempt(id=old[0].attempts[0].id)
        await store.cancel([rollout.id for rollout in waiting])
        assert await store.delete(ids) == 4
        assert (await store.list())[0] == []
        await store.compact()
        assert await store.wait(0, timeout=0) == seq + 2
        await store.add(rollouts(1))
        assert await store.wait(seq + 2, timeout=5) == seq + 3
        await store.put([old])  # it may come back
        assert (await store.read(old[0].rollout.id))[1] == old[1]

    # --- policies ------------------------------------------------------------------------------------------------------------------

    async def test_policies_are_listed_oldest_first(self, store: LightningStore) -> None:
        versions = [Policy(version=v, base="tiny", uri=f"file:/{v}") for v in (0, 1, 10, 2)]
        judge = Policy(name="judge", version=0, base="tiny", kind="lora", uri="memory:x")
        for policy in [*versions, judge]:
            await store.publish(policy)
            await store.publish(policy)
        assert [p.version for p in await store.policies("main")] == [0, 1, 2, 10]
        assert await store.policies("judge") == [judge]
        assert len(await store.policies()) == 5
        assert await store.policies("nobody") == []
        with refused(StoreError):
            await store.publish(replace(judge, uri="memory:y"))
        assert await store.policies("judge") == [judge]

    # --- the end -------------------------------------------------------------------------------------------------------------------

    async def test_a_closed_store_says_so(self, store: LightningStore) -> None:
        await store.close()
        await store.close()
        with refused(StoreError):
            await store.add(rollouts(1))
        with refused(StoreError):
            await store.list()
