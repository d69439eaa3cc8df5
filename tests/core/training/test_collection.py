"""Which rollouts make up a step: ahead of the trainer, refilled, filtered, by a curriculum; real runs on a tiny model."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from letters import TASKS, ask, two_turns

import agentlightning as agl
from agentlightning.contracts.engine import EngineSettings
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import ConfigError, TrainerError, UnsupportedSetting
from agentlightning.rl.batch.filters import difficulty, nonzero_variance
from agentlightning.stores.common import open_store
from agentlightning.training.job import make_job
from agentlightning.training.metrics import read_metrics
from agentlightning.training.plan import _own_weights  # pyright: ignore[reportPrivateUsage]
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.train import train_job
from agentlightning.types import Task, Trajectory
from agentlightning_torch.engine import TorchEngine
from agentlightning_torch.weights import get_weights
from agentlightning_vllm.settings import VllmSettings


class Steps:
    """Progress that tells how many steps are done, and stops the run, as Ctrl-C does, after one of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.done, self.messages, self.stop = 0, list[str](), asyncio.Event()
        self._stop_after = stop_after

    def step(self, row: Any) -> None:
        self.done = row["step"]
        if self.done == self._stop_after:
            self.stop.set()

    def message(self, text: str) -> None:
        self.messages.append(text)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def job(model: str, folder: Path, agent: Any = two_turns, **more: Any) -> Any:
    settings = {
        "steps": 4,
        "tasks_per_step": 2,
        "algorithm": agl.LightningRL(group_size=4),
        "trainer": {"name": "torch", "lr": 1e-3},
        "engine": {"name": "torch", "device": "cpu", "dtype": "float32"},
        "checkpoints": {"every": 0},
        **more,
    }
    return make_job(agent, tasks=TASKS, model=model, folder=folder, **{"name": "tiny", **settings})


def run(job: Any, steps: Steps | None = None, resume: Path | None = None) -> agl.Run:
    steps = steps or Steps()
    return asyncio.run(train_job(job, progress=steps, resume=resume, stop=steps.stop))


def rows(run: agl.Run) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run.folder) if row["step"]]


def measured(run: agl.Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith(("seconds", "tokens_per_second"))} for row in rows(run)]


def stored(run: agl.Run) -> dict[str, tuple[RolloutState, AttemptRecords | None]]:
    """Every rollout of a run by its id, with the records of its winner."""

    async def read() -> dict[str, tuple[RolloutState, AttemptRecords | None]]:
        store = open_store(RunFolder.open(run.folder).store_address)
        try:
            states, _ = await store.list(limit=10_000)
            found = {}
            for state in states:
                _, records = await store.read(state.rollout.id)
                winner = state.winner
                found[state.rollout.id] = state, next((r for r in records if winner is not None and r.attempt.id == winner.id), None)
            return found
        finally:
            await store.close()

    return asyncio.run(read())


ONE_BY_ONE = {
    "engine": {"name": "torch", "max_batch": 1, "device": "cpu", "dtype": "float32"},
    "runner": agl.RunnerSettings(concurrency=1),
}


def test_rollouts_go_on_while_the_trainer_steps_and_each_token_keeps_the_version_that_sampled_it(model: str, tmp_path: Path) -> None:
    steps = Steps()
    done = run(
        job(model, tmp_path, steps=8, collection={"max_staleness": 1}, algorithm=agl.LightningRL(group_size=4, advantage="rloo")), steps
    )
    assert [text for text in steps.messages if 'correction = "tis"' in text]
    every, folder = stored(done), RunFolder.open(done.folder)
    taken = {step: folder.read_batch(step) for step in range(1, 9)}
    assert sorted(each for learned in taken.values() for each in learned) == sorted(every), "each rollout makes up one step"
    ahead = [every[each][0].rollout.step for step, learned in taken.items() for each in learned if every[each][0].rollout.step < step - 1]
    assert len(ahead) > 20, "a step's rollouts began before the step before it had ended"
    assert {row["rollouts"] for row in rows(done)} == {8}
    versions = [set(c.versions.tolist()) for _, records in every.values() if records for c in records.completions]
    assert len(set().union(*versions)) > 4
    trained = [row for row in rows(done) if row["trained_tokens"]]
    assert max(row["version_gap_max"] for row in trained) == 1
    assert [row["off_policy_abs"] for row in trained if row["version_gap_max"]]
    assert all(row.get("mismatch_abs", 0) < 1e-4 for row in trained), "what lies between versions is no difference of engine and trainer"
    assert not any("alarm" in row for row in rows(done))


def test_tokens_beyond_the_staleness_are_left_out_and_counted(model: str, tmp_path: Path) -> None:
    steps = Steps()

    async def agent(task: Any, llm: agl.LLM) -> float:
        messages: list[Any] = [{"role": "user", "content": task["text"]}]
        first = await ask(llm, messages)
        if not slow or slow == [task["id"]]:  # whatever task comes first: its group waits between its two calls
            slow[:] = [task["id"]]
            if steps.done < 3:
                while steps.done < 3:
                    await asyncio.sleep(0.01)
        second = await ask(llm, [*messages, {"role": "assistant", "content": first}, {"role": "user", "content": "more"}])
        return sum(each.isalpha() for each in second[:8]) / 8

    slow: list[str] = []
    done = run(job(model, tmp_path, agent, steps=7, collection={"max_staleness": 1}), steps)
    late = {each: state for each, (state, _) in stored(done).items() if state.rollout.task.id == slow[0] and state.rollout.step == 0}
    assert len(late) == 4
    folder = RunFolder.open(done.folder)
    [(step, learned)] = [(s, b) for s in range(1, 8) if set(late) <= set(b := folder.read_batch(s))]
    assert step > 3
    reason = "sampled by a policy that is older than collection.max_staleness"
    for each in late:
        assert learned[each].excluded[reason] > 0, "its first call"
        assert learned[each].trained + sum(n for why, n in learned[each].excluded.items() if why != reason) > 0, "its second call"
    assert rows(done)[step - 1]["stale_tokens"] == sum(
        learned[each].excluded[reason] for each in learned if reason in learned[each].excluded
    )
    assert all(row["stale_tokens"] == 0 for row in rows(done)[:3])


def test_an_engine_with_weights_of_its_own_serves_what_one_that_shares_them_does(model: str, tmp_path: Path) -> None:
    shared = run(job(model, tmp_path, **ONE_BY_ONE))
    engine = {**ONE_BY_ONE["engine"], "copy_weights": True}
    own = run(job(model, tmp_path, **{**ONE_BY_ONE, "engine": engine}, collection={"max_staleness": 0}))
    assert measured(own) == measured(shared)
    assert [row for row in rows(own) if row["trained_tokens"]]


def test_a_stopped_run_starts_again_what_ran_ahead(model: str, tmp_path: Path) -> None:
    settings = {"steps": 5, "collection": {"max_staleness": 2}}
    half = run(job(model, tmp_path, **settings), Steps(stop_after=2))
    assert half.stopped
    pending = RunFolder.open(half.folder).read_state().pending
    assert len(pending) == 4  # two steps of two groups
    whole = run(job(model, tmp_path, **settings), resume=half.folder)
    assert [row["step"] for row in rows(whole)] == [1, 2, 3, 4, 5]
    every, folder = stored(whole), RunFolder.open(whole.folder)
    taken = Counter(every[each][0].rollout.group for step in range(1, 6) for each in folder.read_batch(step))
    assert set(taken.values()) == {4}
    assert len(taken) == 10
    assert {f"train-{each['step']}-{each['place']}" for each in pending} <= set(taken)
    left = [state for state, _ in every.values() if state.status in ("queued", "running")]
    assert not left
    assert folder.read_state().pending == []


async def first_letter(task: Any, llm: agl.LLM) -> float:
    """Tasks `abc` and `xyz` are always right."""
    text = await ask(llm, [{"role": "user", "content": task["text"]}])
    return 1.0 if task["text"] in ("abc", "xyz") else sum(each.isalpha() for each in text[:8]) / 8


def test_zero_variance_groups_are_replaced_up_to_a_budget(model: str, tmp_path: Path) -> None:
    refilled = run(job(model, tmp_path, first_letter, steps=3, collection={"filter": "nonzero_variance", "resample": 2}))
    for row in rows(refilled):
        assert row["groups"] == 2 + row["groups_resampled"]
        assert row["groups_filtered"] >= row["groups_resampled"]
        assert row["groups_resampled"] == min(2, row["groups_filtered"])
    assert sum(row["groups_resampled"] for row in rows(refilled)) >= 2, "each epoch of six tasks has two without signal"
    plain = run(job(model, tmp_path, first_letter, steps=3))
    kept = [row["groups"] - row["zero_variance_groups"] for row in rows(refilled)]
    assert sum(kept) > sum(row["groups"] - row["zero_variance_groups"] for row in rows(plain))
    learned = RunFolder.open(refilled.folder).read_batches()
    assert sum(each.excluded.get("its group was filtered (collection.filter)", 0) for each in learned.values()) > 0
    assert sum(each.trained + sum(each.excluded.values()) for each in learned.values()) == sum(r["sampled_tokens"] for r in rows(refilled))


def test_a_run_with_refills_that_was_stopped_goes_on_bitwise(model: str, tmp_path: Path) -> None:
    settings = {**ONE_BY_ONE, "collection": {"filter": "nonzero_variance", "resample": 1}, "sampler": "curriculum"}
    whole = run(job(model, tmp_path / "whole", first_letter, **settings))
    half = run(job(model, tmp_path / "half", first_letter, **settings), Steps(stop_after=2))
    resumed = run(job(model, tmp_path / "half", first_letter, **settings), resume=half.folder)
    assert measured(resumed) == measured(whole)
    assert sum(row["groups_resampled"] for row in rows(whole)) > 0
    folder = RunFolder.open(whole.folder)
    evidence = folder.read_state().sampler["now"].values()  # what the curriculum was told
    assert any(total == count for count, total, _ in evidence), "a task that is always right"
    assert any(total < count for count, total, _ in evidence)
    summary = folder.read_result()["sampler"]
    assert summary == RunFolder.open(resumed.folder).read_result()["sampler"]
    assert summary["groups"] == sum(row["groups"] for row in rows(whole))
    assert summary["no_signal_groups"] == sum(row["zero_variance_groups"] for row in rows(whole))


def test_a_second_run_starts_from_the_difficulty_that_the_first_one_measured(model: str, tmp_path: Path) -> None:
    settings = {**ONE_BY_ONE, "sampler": "curriculum", "steps": 3}
    first = RunFolder.open(run(job(model, tmp_path, first_letter, **settings)).folder)
    steps, other = Steps(), Steps()
    second = run(job(model, tmp_path, first_letter, **{**settings, "steps": 1}), steps)
    earlier = first.read_state().sampler["start"]
    [said] = [text for text in steps.messages if "earlier run" in text]
    assert said.startswith(f"An earlier run measured {len(earlier)} of the 6 tasks.")
    assert set(earlier) <= set(RunFolder.open(second.folder).read_state().sampler["now"])
    run(job(model, tmp_path, two_turns, **{**settings, "steps": 1}), other)
    run(job(model, tmp_path, first_letter, **{**settings, "steps": 1, "name": "seed-1"}), other)
    assert not [text for text in other.messages if "earlier run" in text], (
        "another agent finds other tasks hard; another name is independent"
    )


def test_a_task_that_comes_twice_in_a_step_is_sampled_anew(model: str, tmp_path: Path) -> None:
    twice = run(job(model, tmp_path, steps=1, tasks_per_step=12, algorithm=agl.LightningRL(group_size=2)))
    seen: dict[tuple[str, int], set[bytes]] = {}
    for state, records in stored(twice).values():
        assert records is not None
        replies = b"".join(completion.response_ids.tobytes() for completion in records.completions)
        seen.setdefault((state.rollout.task.id, state.rollout.index), set()).add(replies)
    assert {len(replies) for replies in seen.values()} == {2}


def cheapest(group: Sequence[Trajectory], *, tokens: int = 40) -> bool:
    return sum(len(each.response_ids) for t in group for each in t.transitions) <= tokens


def test_a_filter_of_ones_own_is_a_function_with_settings(model: str, tmp_path: Path) -> None:
    filter = {"name": f"{__name__}:cheapest", "tokens": 0}
    done = run(job(model, tmp_path, steps=1, collection={"filter": filter}))
    assert rows(done)[0]["groups_filtered"] == 2
    assert rows(done)[0]["trained_tokens"] == 0
    assert rows(done)[0]["policy_version"] == 0


def test_replies_that_were_cut_off_are_left_out_where_the_policy_says_so(model: str, tmp_path: Path) -> None:
    done = run(job(model, tmp_path, steps=1, collection={"truncated": "drop"}))
    [row] = rows(done)
    cut = [
        len(completion.response_ids)
        for _, records in stored(done).values()
        if records
        for completion in records.completions
        if completion.finish_reason == "length"
    ]
    assert row["truncated_tokens_dropped"] == sum(cut) > 0
    assert row["trained_tokens"] == row["sampled_tokens"] - sum(cut)


def test_a_conversation_longer_than_the_trainer_takes_is_an_error_or_left_out_and_counted(model: str, tmp_path: Path) -> None:
    limit = 52  # between the first turn and the second one
    trainer = {"name": "torch", "lr": 1e-3, "tokens_per_pack": limit}
    with pytest.raises(TrainerError, match=r"Raise tokens_per_pack.*collection\.overlong = \"drop\""):
        run(job(model, tmp_path, steps=1, trainer=trainer))
    done = run(job(model, tmp_path, steps=1, trainer=trainer, collection={"overlong": "drop"}))
    [row] = rows(done)
    assert row["overlong_tokens_dropped"] > 0
    long = [
        len(completion.response_ids)
        for _, records in stored(done).values()
        if records
        for completion in records.completions
        if len(completion.prompt_ids) + len(completion.response_ids) > limit
    ]
    assert row["overlong_tokens_dropped"] == sum(long)
    assert row["trained_tokens"] == row["sampled_tokens"] - sum(long) > 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"collection": {"max_staleness": -1}}, r"collection\.max_staleness is -1\. Use a whole number of at least 0"),
        ({"collection": {"resample": 3}}, r"collection\.resample is 3, but nothing is filtered"),
        ({"collection": {"filter": "nonzero_varianc"}}, r"collection\.filter: .*Did you mean 'nonzero_variance'"),
        (
            {"collection": {"filter": {"name": "difficulty", "low": 0.9, "high": 0.1}}},
            r"collection\.filter\.low and high are 0\.9 and 0\.1",
        ),
        (
            {"collection": {"filter": {"name": "nonzero_variance", "toler": 1}}},
            r"Unknown key 'toler' in \[collection\.filter\]\. Did you mean 'tolerance'",
        ),
        ({"collection": {"truncated": "punish"}}, r"collection\.truncated is 'punish'"),
        ({"collection": {"overlong": 1}}, r"collection\.overlong is 1"),
        (
            {"collection": {"max_staleness": 1}, "engine": {"name": "torch", "copy_weights": False}},
            r"engine\.copy_weights = false does not fit collection\.max_staleness = 1",
        ),
    ],
)
def test_a_bad_setting_of_the_collection_is_one_line_before_any_model_loads(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, UnsupportedSetting), match=said) as raised:
        run(job("a model that is nowhere", tmp_path, **more))
    assert "\n" not in str(raised.value)


def test_an_engine_cannot_free_its_gpu_while_rollouts_continue() -> None:
    settings = VllmSettings(sleep=True)
    assert _own_weights("vllm", settings, 0) == settings
    with pytest.raises(UnsupportedSetting, match=r"engine\.sleep .*max_staleness = 2"):
        _own_weights("vllm", settings, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoCopy(EngineSettings):
    device: str = "cpu"
    dtype: str = "float32"
    max_batch: int = 8
    memory_gb: float = 0.25


class Sharing(TorchEngine):
    """An engine that shares the trainer's weights and has no setting for a copy."""

    Settings = NoCopy  # type: ignore[assignment]

    @classmethod
    async def create(cls, model: ModelFiles, settings: Any, share: Share) -> Any:
        return cls(get_weights(share, model, device="cpu", dtype="float32"), settings)


def test_an_engine_that_can_only_share_the_trainers_weights_takes_no_rollouts_ahead(model: str, tmp_path: Path) -> None:
    more = {"engine": {"name": f"{__name__}:Sharing"}}
    assert rows(run(job(model, tmp_path, steps=1, **more)))
    with pytest.raises(UnsupportedSetting, match=r"max_staleness is 1, .* serves the trainer's own weights"):
        run(job(model, tmp_path, steps=1, collection={"max_staleness": 1}, **more))


def group(*rewards: float | None) -> list[Trajectory]:
    return [
        Trajectory(
            task=Task("t", None), rollout_id=str(k), attempt_id=str(k), group="g", index=k, mode="train", status="succeeded", reward=reward
        )
        for k, reward in enumerate(rewards)
    ]


def test_filters_say_whether_a_group_teaches_anything() -> None:
    assert nonzero_variance(group(0.0, 1.0))
    assert not nonzero_variance(group(1.0, 1.0 + 1e-9, None))
    assert not nonzero_variance(group(1.0, None))
    assert nonzero_variance(group(0.0, 0.3), tolerance=0.2)
    assert not nonzero_variance(group(0.0, 0.1), tolerance=0.2)
    assert difficulty(group(0.0, 1.0))
    assert not difficulty(group(1.0, 1.0, None))
    assert not difficulty(group(None, None))
    assert difficulty(group(1.0, 1.0), high=1.0)


def test_eval_tasks_that_are_trained_on_are_told_once_whatever_their_ids(model: str, tmp_path: Path) -> None:
    copied, new = {**TASKS[1], "id": "copied"}, {**TASKS[0], "text": "nobody trains on this"}
    steps = Steps(stop_after=1)
    first = run(job(model, tmp_path, eval_tasks=[copied, new], eval={"every": 0}, steps=2), steps)
    warning = "1 of 2 eval tasks are also training tasks (the first is 'copied')."
    assert next(text for text in steps.messages if "eval tasks" in text).startswith(warning)
    steps = Steps()
    run(job(model, tmp_path, eval_tasks=[copied, new], eval={"every": 0}, steps=2), steps, resume=first.folder)
    assert not [text for text in steps.messages if "training tasks" in text]
