"""Stored rollouts are scored again: rewards are appended, the later one counts, and the report says what changed."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from agentlightning.contracts.store import LightningStore, StoredRollout
from agentlightning.errors import RewardError
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.stores.common import open_store
from agentlightning.testing.store import ended_rollout, rollouts
from agentlightning.training.rescore import Change, RecordedRollout, Rescoring, rescore
from agentlightning.types import Reward, Task


def scored(task: Any, *rewards: tuple[str, float], answer: str = "") -> StoredRollout:
    """A succeeded rollout with these rewards, in this order, and a last reply."""
    state, (records,) = ended_rollout(turns=2)
    first, last = records.completions
    values = tuple(Reward(attempt_id=records.attempt.id, name=name, value=value) for name, value in rewards)
    last = replace(last, message={"role": "assistant", "content": answer})
    state = replace(state, rollout=replace(state.rollout, task=Task(str(task), task)))
    return state, (replace(records, completions=(first, last), rewards=values),)


async def filled(*stored: StoredRollout) -> LightningStore:
    store = open_store("memory:")
    await store.put(stored)
    return store


async def rewards(store: LightningStore) -> list[float | None]:
    """The reward of each rollout, as training counts it."""
    return [trajectory(*await store.read(state.rollout.id)).reward for state in (await store.list())[0] if state.winner]


def length(rollout: RecordedRollout) -> float:
    return float(len(rollout.answer))


async def test_new_rewards_are_appended_and_count_and_the_report_says_what_changed() -> None:
    stored = [
        scored("a", ("return", 1.0), answer="four"),
        scored("b", ("reward", 3.0), answer="six"),
        scored("c", answer="x" * 9),
        scored("d", ("return", 2.0), ("reward", 2.0), answer="seven"),
        ended_rollout("failed"),
    ]
    store = await filled(*stored)
    await store.add(rollouts(1))
    rescored = await rescore(store, Rescoring(function=length, source="judge:length"))
    assert (rescored.rollouts, rescored.other, rescored.changed, rescored.appended) == (4, 2, 3, 4)
    assert (rescored.before, rescored.after) == ([6.0, 3.0], [21.0, 4.0])
    ids = [state.rollout.id for state, _ in stored]
    assert rescored.largest == [
        Change(9.0, ids[2], None, 9.0),
        *sorted([Change(3.0, ids[0], 1.0, 4.0), Change(3.0, ids[3], 2.0, 5.0)])[::-1],
    ]
    assert (await rewards(store))[:4] == [4.0, 3.0, 9.0, 5.0]
    _, (records,) = await store.read(ids[0])
    assert [(r.name, r.value, r.source) for r in records.rewards] == [("return", 1.0, "agent"), ("return", 4.0, "judge:length")]
    again = await rescore(store, Rescoring(function=length, source="judge:length"))
    assert (again.changed, again.appended) == (0, 0)


async def test_a_dry_run_reports_the_same_and_records_nothing() -> None:
    store = await filled(scored("a", ("return", 1.0), answer="four"))
    rescored = await rescore(store, Rescoring(function=length, source="j"), write=False)
    assert (rescored.appended, rescored.after) == (1, [4.0, 1.0])
    assert await rewards(store) == [1.0]


async def test_a_named_reward_stands_beside_the_others_with_its_weight() -> None:
    store = await filled(scored("a", ("reward", 1.0), answer="four"))
    rescored = await rescore(store, Rescoring(function=length, source="j", name="length", weights={"reward": 1.0, "length": 0.5}))
    assert rescored.after == [3.0, 1.0]
    assert rescored.before == [0.0, 0.0], "without the weighed reward it was not scored"


async def test_a_function_sees_the_task_and_may_be_async_and_may_leave_a_rollout() -> None:
    store = await filled(scored({"n": 1}, ("return", 0.0)), scored({"n": 2}, ("return", 0.0)))

    async def judge(rollout: RecordedRollout) -> float | None:
        assert rollout.rewards == {"return": 0.0}
        assert len(rollout.replies) == 2
        return None if rollout.task["n"] == 1 else 1.0

    assert (await rescore(store, Rescoring(function=judge, source="j"))).changed == 1
    assert await rewards(store) == [0.0, 1.0]


@pytest.mark.parametrize("wrong", [float("nan"), "text", RuntimeError("boom")])
async def test_a_function_that_fails_is_named_with_its_rollout(wrong: Any) -> None:
    store = await filled(scored("a", ("return", 0.0)))

    def fails(rollout: RecordedRollout) -> Any:
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    (state,) = (await store.list())[0]
    with pytest.raises(RewardError, match=rf"j:fails failed for rollout {state.rollout.id}: .*\. Fix it and score again\."):
        await rescore(store, Rescoring(function=fails, source="j:fails"))
    assert await rewards(store) == [0.0]
