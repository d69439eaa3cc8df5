"""What a source takes, in which order, and what it leaves and why; on a store in memory."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.algorithms.lightning import LightningRL
from agentlightning.config.schema import CollectionConfig, Config
from agentlightning.contracts.store import LightningStore
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.stores.common import open_store
from agentlightning.training.controls import Controls, Stopped
from agentlightning.training.production.reading import ReplayReader
from agentlightning.training.production.replay import ProductionReplay
from agentlightning.training.production.states import ReplayRollout, State, choose
from agentlightning.training.progress import Progress
from agentlightning.training.rollouts import ReadTrajectory, trajectory_reader
from agentlightning.types import Call, Completion, Mode, Reward, Rollout, Sampling, Task

OURS = "0123456789abcdef"


async def acted(
    store: LightningStore,
    task: str,
    *rewards: float,
    calls: int = 1,
    mode: Mode = "production",
    status: Any = "succeeded",
    **told: Any,
) -> str:
    """A rollout that has ended; its id. `told`: of its completions."""
    rollout = Rollout(task=Task(task, task), mode=mode, max_attempts=1)
    attempt = await store.begin(rollout, "test", lease=60)
    for index in range(calls):
        call = Call(id=f"{rollout.id}-{index}", attempt_id=attempt.id, index=index, status="completed", choices=1)
        ids = told.get("response_ids", [5, 6, 2])
        given = {"logprobs": [-0.5] * len(ids), "versions": [7] * len(ids), "sampling": Sampling(), "tokenizer": OURS, **told}
        completion = Completion(
            call_id=call.id, attempt_id=attempt.id, prompt_ids=[1], finish_reason="stop", **{"response_ids": ids, **given}
        )
        await store.record([completion, call])
    await store.record([Reward(attempt_id=attempt.id, value=value, name=f"reward-{n}") for n, value in enumerate(rewards)])
    await store.finish(attempt.id, status)
    return rollout.id


async def reward(store: LightningStore, rollout_id: str, value: float, name: str = "reward") -> None:
    state, _ = await store.read(rollout_id)
    await store.record([Reward(attempt_id=state.attempts[0].id, value=value, name=name)])


def source_of(
    store: LightningStore,
    *,
    compares: bool = False,
    reading: ReadTrajectory = trajectory,
    stop: asyncio.Event | None = None,
    **more: Any,
) -> ProductionReplay:
    reader = ReplayReader(store, reading, OURS)
    return ProductionReplay(reader, Controls(Progress(), stop or asyncio.Event()), compares=compares, tasks_per_step=1, **more)


async def ids(source: ProductionReplay, tasks: int, group_size: int) -> list[str]:
    return [each.rollout_id for each in await source.take(tasks, group_size)]


async def test_rollouts_come_in_the_order_of_their_end_each_once_and_the_last_step_takes_the_rest() -> None:
    store = open_store("memory:")
    made = [await acted(store, f"task {n}", 1.0) for n in range(5)]
    await acted(store, "training", 1.0, mode="train")
    source = source_of(store)
    assert [await ids(source, 2, 1), await ids(source, 1, 2), await ids(source, 2, 1)] == [made[:2], made[2:4], made[4:]]
    assert not await source.more()
    assert await ids(source, 2, 1) == []
    made += [await acted(store, "one more", 0.0)]
    assert await source.more()
    assert await ids(source, 2, 1) == made[5:]


async def test_the_store_is_read_only_as_far_as_a_step_needs() -> None:
    store = open_store("memory:")
    for n in range(10):
        await acted(store, f"task {n}", 1.0)
    read = store.read
    seen: list[str] = []

    async def counted(rollout_id: str) -> Any:
        seen.append(rollout_id)
        return await read(rollout_id)

    store.read = counted  # type: ignore[method-assign]
    await source_of(store).take(2, 1)
    assert len(set(seen)) == 2


async def test_an_algorithm_that_compares_waits_for_whole_groups_and_takes_smaller_ones_in_the_end() -> None:
    store = open_store("memory:")
    a = [await acted(store, "a", float(n)) for n in range(2)]
    b = [await acted(store, "b", float(n)) for n in range(3)]
    alone = await acted(store, "alone", 1.0)
    a += [await acted(store, "a", 2.0), await acted(store, "a", 3.0), await acted(store, "a", 4.0)]
    source = source_of(store, compares=True)
    first = await source.take(1, 3)
    assert [each.rollout_id for each in first] == b, "the group that was whole first"
    assert [(each.group, each.index) for each in first] == [("b", 0), ("b", 1), ("b", 2)]
    assert await ids(source, 1, 3) == a[:3]
    assert await ids(source, 4, 3) == a[3:], "two are enough to compare, one is not"
    assert not await source.more()
    assert source.account() == "1 with no other rollout of their task to compare with"
    company = await acted(store, "alone", 0.0)
    assert await ids(source, 4, 3) == [alone, company]


async def test_two_groups_of_a_task_in_one_step_are_one_larger_group() -> None:
    store = open_store("memory:")
    made = [await acted(store, "a", float(n)) for n in range(4)]
    found = await source_of(store, compares=True).take(2, 2)
    assert [(each.rollout_id, each.group, each.index) for each in found] == [(each, "a", n) for n, each in enumerate(made)]


async def test_a_scored_rollout_with_nothing_to_train_counts_in_the_baseline_of_its_group_and_takes_no_place_elsewhere() -> None:
    store = open_store("memory:")
    silent = await acted(store, "a", 0.0, calls=0)
    foreign = await acted(store, "a", 0.0, tokenizer="another")
    greedy = await acted(store, "a", 0.0, sampling=Sampling(temperature=0))
    one, two = await acted(store, "a", 1.0), await acted(store, "a", 1.0)
    source = source_of(store, compares=True)
    found = await source.take(1, 2)
    assert [each.rollout_id for each in found] == [silent, greedy, one, two], "of another model is no baseline"
    assert foreign not in {each.rollout_id for each in found}
    assert source.counts() == {"replay.waiting": 0, "replay.unscored": 0, "replay.excluded": 1}
    assert await ids(source_of(store), 5, 1) == [one, two]


@pytest.mark.parametrize("no_calls", ["drop", "keep"])
async def test_a_rollout_without_a_model_call_is_dropped_unless_it_is_to_be_kept(no_calls: Any) -> None:
    store = open_store("memory:")
    silent, one, two = await acted(store, "a", 0.0, calls=0), await acted(store, "a", 1.0), await acted(store, "a", 1.0)
    await acted(store, "a", calls=0)
    read = trajectory_reader(Config(model="tiny", command="true", tasks="t.jsonl", collection=CollectionConfig(no_calls=no_calls)))
    source = source_of(store, compares=True, reading=read)
    assert await ids(source, 1, 2) == ([one, two] if no_calls == "drop" else [silent, one, two])
    await source.more()
    assert source.account() == ("2 without a model call" if no_calls == "drop" else "1 without a reward so far")


async def test_a_waiting_replay_looks_for_a_reward_although_the_clock_went_back(monkeypatch: pytest.MonkeyPatch) -> None:
    store, clocks = open_store("memory:"), SimpleNamespace(time=time.time, monotonic=time.monotonic)
    rollout = await acted(store, "a")
    monkeypatch.setattr(ProductionReplay, "SOONEST", 0.05)
    monkeypatch.setattr("agentlightning.training.production.replay.time", clocks)
    source = source_of(store)
    await source.take(1, 1)
    clocks.time = lambda: time.time() - 86400
    await reward(store, rollout, 1.0)
    await asyncio.sleep(0.1)
    assert await source._look_again(clocks.monotonic()) == float("inf")
    assert await ids(source, 1, 1) == [rollout]


async def test_a_waiting_replay_looks_the_less_often_for_a_reward_the_older_its_rollout_is(monkeypatch: pytest.MonkeyPatch) -> None:
    store, clock = open_store("memory:"), [time.time()]
    late = await acted(store, "a")
    await acted(store, "b")
    reads: list[str] = []
    read = store.read

    async def counted(rollout_id: str) -> Any:
        reads.append(rollout_id)
        return await read(rollout_id)

    store.read = counted  # type: ignore[method-assign]
    clocks = SimpleNamespace(time=lambda: clock[0], monotonic=lambda: clock[0])
    monkeypatch.setattr("agentlightning.training.production.replay.time", clocks)
    source = source_of(store)
    await source.take(1, 1)
    looks = []
    for _ in range(7):  # a week in the store
        reads.clear()
        for _ in range(24 * 12):
            clock[0] += 300
            await source._look_again(clock[0])
        looks.append(len(reads))
    assert looks[0] < 2 * 60
    assert looks[-1] <= 4
    await reward(store, late, 1.0)
    assert await source.more()
    assert await ids(source, 1, 1) == [late]
    assert source.account() == "1 without a reward so far"


async def test_what_is_left_is_counted_by_why() -> None:
    store = open_store("memory:")
    await acted(store, "a")
    await acted(store, "a", 1.0, status="failed")
    await acted(store, "a", float("nan"))
    await acted(store, "a", 1.0, calls=0)
    await acted(store, "a", 1.0, tokenizer="another")
    await acted(store, "a", 1.0, tokenizer="")
    await acted(store, "a", 1.0, sampling=Sampling(temperature=0))
    await acted(store, "a", 1.0, sampling=Sampling(top_p=0.9))
    nothing_told: dict[str, Any] = {
        "response_ids": [],
        "versions": [],
        "logprobs": None,
        "tokenizer": "",
        "missing": "the upstream tells no ids",
    }
    await acted(store, "a", 1.0, **nothing_told)
    source = source_of(store)
    assert not await source.more()
    assert sorted(source.account().split("; ")) == [
        "1 not to be trained (recorded with another tokenizer than that of the model that is trained)",
        "1 not to be trained (recorded without saying with which tokenizer)",
        "1 not to be trained (sampled greedily)",
        "1 not to be trained (sampled with top_p or top_k, so its logprobs are not those of the sampling distribution)",
        "1 not to be trained (the upstream tells no ids)",
        "1 that ended as 'failed'",
        "1 with rewards that contradict each other, or are no finite numbers",
        "1 without a model call",
        "1 without a reward so far",
    ]
    assert source.counts() == {"replay.waiting": 0, "replay.unscored": 1, "replay.excluded": 8}


async def test_replies_of_another_tokenizer_in_a_rollout_of_ours_are_left_out_by_name_and_versions_are_none_of_ours() -> None:
    store = open_store("memory:")
    rollout_id = await acted(store, "a", 1.0)
    _, [records] = await store.read(rollout_id)
    call = Call(id="other", attempt_id=records.attempt.id, index=1, status="completed", choices=1)
    other = Completion(
        call_id="other", attempt_id=records.attempt.id, prompt_ids=[1], response_ids=[90_000], logprobs=[-1.0], versions=[0],
        sampling=Sampling(), finish_reason="stop", tokenizer="another",
    )  # fmt: skip
    await store.record([other, call])
    [found] = await source_of(store).take(1, 1)
    assert [(each.trained, each.reason) for each in found.transitions] == [
        (True, None),
        (False, "recorded with another tokenizer than that of the model that is trained"),
    ]
    assert [each.versions.tolist() for each in found.transitions] == [[-1] * 3, [-1]]
    _, [after] = await store.read(rollout_id)
    assert (after.completions[0].versions == 7).all(), "the record is as it was"


async def test_a_late_reward_makes_a_rollout_ready_and_one_of_a_taken_rollout_changes_nothing() -> None:
    store = open_store("memory:")
    late, early = await acted(store, "a"), await acted(store, "b", 1.0)
    source = source_of(store)
    assert await ids(source, 1, 1) == [early]
    await reward(store, early, 5.0)
    assert not await source.more()
    await reward(store, late, 0.5)
    assert await source.more()
    [found] = await source.take(3, 1)
    assert (found.rollout_id, found.reward) == (late, 0.5)
    assert not await source.more()


async def test_rewards_that_contradict_each_other_by_the_time_of_the_step_exclude_a_rollout() -> None:
    store = open_store("memory:")
    first, second = await acted(store, "a", 1.0), await acted(store, "b", 1.0)
    source = source_of(store)
    assert await source.more()
    await reward(store, first, float("nan"))
    assert await ids(source, 2, 1) == [second]
    assert source.account() == "1 with rewards that contradict each other, or are no finite numbers"
    assert not await source.more()


async def test_of_one_task_the_rollout_that_ended_first_is_taken_first_whenever_its_reward_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProductionReplay, "SOONEST", 0.0)
    monkeypatch.setattr(ProductionReplay, "AGE", 0.0)
    store = open_store("memory:")
    first, second, third = [await acted(store, "a") for _ in range(3)]
    source = source_of(store, compares=True)
    await reward(store, third, 1.0)
    assert not await source.more()
    await reward(store, first, 1.0)
    await reward(store, second, 1.0)
    assert await ids(source, 2, 2) == [first, second]


async def test_a_reward_with_a_weight_is_waited_for_where_others_are_there() -> None:
    store = open_store("memory:")
    rollout_id = await acted(store, "a", 1.0)
    source = source_of(store, reading=partial(trajectory, reward_weights={"thumbs": 1.0, "reward-0": 0.5}))
    assert not await source.more()
    await reward(store, rollout_id, 1.0, "thumbs")
    assert await source.more()
    [found] = await source.take(1, 1)
    assert found.reward == 1.5


async def test_it_waits_for_rollouts_by_notice_and_for_rewards_by_looking_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProductionReplay, "SOONEST", 0.02)
    store = open_store("memory:")
    late = await acted(store, "a")
    source = source_of(store, wait=True)
    assert await source.more(), "more may always come"
    step = asyncio.create_task(source.take(2, 1))
    await asyncio.sleep(0.1)
    assert not step.done()
    await reward(store, late, 1.0)
    await asyncio.sleep(0.1)
    assert not step.done()
    new = await acted(store, "b", 1.0)
    assert [each.rollout_id for each in await asyncio.wait_for(step, 5)] == [late, new]


async def test_waiting_looks_ever_less_often_at_one_without_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProductionReplay, "SOONEST", 0.01)
    store, stop = open_store("memory:"), asyncio.Event()
    await acted(store, "a")
    read, looks = store.read, list[float]()

    async def counted(rollout_id: str) -> Any:
        looks.append(asyncio.get_running_loop().time())
        return await read(rollout_id)

    store.read = counted  # type: ignore[method-assign]
    step = asyncio.create_task(source_of(store, wait=True, stop=stop).take(1, 1))
    await asyncio.sleep(1.2)
    stop.set()
    with pytest.raises(Stopped):
        await step
    pauses = np.diff(looks)
    assert 5 < len(looks) < 60
    assert pauses[-1] > 3 * pauses[0], "a tenth of its age"


async def test_what_was_trained_before_is_passed_over() -> None:
    store = open_store("memory:")
    made = [await acted(store, "a", float(n)) for n in range(4)]
    assert await ids(source_of(store, trained=made[:3]), 4, 1) == made[3:]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0, None])), max_size=30),
    st.integers(1, 3),
    st.integers(2, 3),
    st.booleans(),
)
def test_a_source_that_starts_again_takes_what_one_that_went_on_takes(
    rollouts: list[tuple[int, float | None]], tasks: int, size: int, compares: bool
) -> None:
    async def both() -> None:
        store = open_store("memory:")
        for task, value in rollouts:
            await acted(store, str(task), *([] if value is None else [value]), calls=0 if value == 0.0 and task == 3 else 1)
        going, taken = source_of(store, compares=compares), list[str]()
        while await going.more():
            again = source_of(store, compares=compares, trained=taken)
            assert await again.more()
            step = await ids(going, tasks, size)
            assert step
            assert await ids(again, tasks, size) == step
            assert await again.more() == await going.more()
            assert again.counts() == going.counts()
            taken += step
        assert len(taken) == len(set(taken))

    asyncio.run(both())


def test_groups_are_chosen_by_when_they_were_whole() -> None:
    def members(*numbers: int, state: State = State.READY) -> list[ReplayRollout]:
        return [ReplayRollout(str(n), "", n, state=state) for n in numbers]

    ready = {"a": members(1, 9), "b": members(2, 3, 4, 5), "c": members(6)}
    with_baseline = {**ready, "c": [*members(6), *members(7, state=State.BASELINE)]}
    assert choose(ready, 2, 2, least=2, full_only=True) == {"b": members(2, 3, 4, 5)}
    assert choose(ready, 9, 2, least=2, full_only=True) == {"b": members(2, 3, 4, 5), "a": members(1, 9)}
    assert choose(with_baseline, 9, 2, least=2, full_only=False) == {"b": members(2, 3, 4, 5), "a": members(1, 9), "c": members(6)}
    assert choose(ready, 2, 3, least=2, full_only=False) == {"b": members(2, 3, 4), "a": members(1, 9)}


@pytest.mark.parametrize(("advantage", "compares"), [("grpo", True), ("rloo", True), ("reinforce", False), ("reinforce_pp", False)])
def test_whether_groups_are_needed_is_what_the_advantage_says(advantage: str, compares: bool) -> None:
    assert LightningRL(advantage=advantage).needs.group == compares
