"""`agl runs` and `agl compare` on run folders and their stores."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from agentlightning.records.equal_tokens import equal_tokens
from agentlightning.serving.model_card import _results
from agentlightning.stores.common import open_store
from agentlightning.training.choice import Choice, Evaluation
from agentlightning.training.diagnosis import Diagnosis
from agentlightning.training.metrics import JSONLines
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import Evaluated, ReusedEvaluation, RunState
from agentlightning.types import JSON, Call, Completion, Reward, Rollout, Sampling, Task

AGL = Callable[..., tuple[int, str]]
Rewards = Mapping[str, float]


async def record(folder: RunFolder, step: int, rewards: Rewards) -> None:
    """Record the greedy rollouts of an evaluation."""
    store = open_store(folder.store_address)
    for place, (task, reward) in enumerate(rewards.items()):
        rollout = Rollout(
            task=Task(task, {"question": f"What is {task}?"}),
            mode="eval",
            group=f"greedy-{step}-{place}",
            step=step,
            sampling=Sampling(temperature=0),
        )
        attempt = await store.begin(rollout, "worker", lease=60)
        call = Call(id=f"{rollout.id}-c", attempt_id=attempt.id, index=0, status="completed", choices=1)
        completion = Completion(
            call_id=call.id,
            attempt_id=attempt.id,
            prompt_ids=[1],
            response_ids=[2],
            logprobs=[-0.5],
            versions=[step],
            sampling=Sampling(),
            finish_reason="stop",
        )
        await store.record([call, completion, Reward(attempt_id=attempt.id, value=reward, name="return")])
        await store.finish(attempt.id, "succeeded")
    await store.close()


def make_run(name: str, evaluations: dict[int, Rewards], served: int | None, diagnosis: Diagnosis | None = None) -> RunFolder:
    """A run whose store has the evaluation of each step, and whose state keeps the first and the strongest of them."""
    folder = RunFolder.create("runs", name)
    folder.write_config('model = "models/tiny"\nsteps = 8\n')
    kept = {step: Evaluation(step=step, rewards={"greedy": dict(rewards)}) for step, rewards in evaluations.items()}
    later = [evaluation for step, evaluation in kept.items() if step > 0]
    last = max(evaluations, default=None)
    folder.write_state(
        RunState(
            step=last or 0,
            first=kept.get(0),
            strongest=max(later, key=lambda it: sum(it.rewards["greedy"].values()), default=None),
            choice=None if served is None else Choice(step=served, reason="a test"),
            evaluated=None if last is None else Evaluated(step=last, version=last, measured=1.0),
            diagnosis=diagnosis,
            seconds=120.0,
            started=1.0,
        )
    )
    for step, rewards in evaluations.items():
        asyncio.run(record(folder, step, rewards))
    return folder


BASE = {f"t{k:02}": float(k < 4) for k in range(16)}
"""4 of 16 tasks are solved."""
STRONG = {f"t{k:02}": float(k < 14) for k in range(16)}
SERVED = {f"t{k:02}": float(2 <= k < 14) for k in range(16)}
"""12 of 16; against `BASE` ten are won, and two lost."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


def test_runs_are_listed_with_their_progress(agl: AGL, here: Path) -> None:
    done = make_run("one", {0: BASE, 8: STRONG}, 8)
    done.write_result({"eval": {"greedy": {"before": 0.25, "after": 0.875}}})
    done.write_state(RunState(step=8, finished=True, first=done.read_state().first, seconds=120.0))
    make_run("two", {0: BASE}, None, Diagnosis(cause="no_signal", evidence="e.", remedy="r."))
    RunFolder.create("runs", "three")
    running = make_run("four", {}, None)
    nested = RunFolder.create("runs/bench-math-20260101-000000", "five")
    nested.write_state(RunState(step=3))
    with running.lock():
        code, output = agl("runs")
    assert code == 0
    rows = {row[0].rpartition("-")[2]: row[1:] for row in words(output)[1:]}
    assert set(rows) == {"one", "two", "three", "four", "five"}
    assert rows["one"][-6:] == ["8/8", "2", "0.250", "→", "0.875", "finished"]
    assert rows["two"][-5:] == ["0/8", "2", "0.250", "stopped,", "no_signal"]
    assert " ".join(rows["three"]) == "stopped before its first step"
    assert rows["four"][-1] == "running"
    assert rows["five"] == ["3", "0", "stopped"]
    assert "and 4 earlier ones" in agl("runs", "--limit", "1")[1]
    assert agl("runs", "elsewhere")[1].strip() == "no run in elsewhere"


def test_a_run_is_compared_with_its_model(agl: AGL, here: Path) -> None:
    make_run("one", {0: BASE, 4: STRONG, 8: SERVED}, 8)
    code, output = agl("compare", "latest")
    assert code == 0
    [row] = [row for row in words(output) if row[:1] == ["greedy"] and row[1] not in ("won:", "lost:")]
    assert row[1:4] == ["0.250", "0.750", "+0.500"]
    assert row[-3:] == ["10", "2", "4"]
    low, high = float(row[4]), float(row[6])
    assert 0.0 < low < 0.5 < high < 1.0
    assert f"greedy won: {', '.join(f't{k:02}' for k in range(4, 14))}" in output
    assert "greedy lost: t00, t01" in output


def test_a_run_that_serves_its_model_is_compared_by_its_last_evaluation(agl: AGL, here: Path) -> None:
    make_run("one", {0: BASE, 4: STRONG, 8: SERVED}, 0)
    code, output = agl("compare", "latest")
    assert code == 0
    [row] = [row for row in words(output) if row[:1] == ["greedy"] and row[1] not in ("won:", "lost:")]
    assert row[1:4] == ["0.250", "0.750", "+0.500"]
    assert "step 8" in output
    make_run("two", {0: BASE}, None)
    code, output = agl("compare", "latest")
    assert (code, "was not evaluated after training began" in " ".join(output.split())) == (1, True)


def test_two_runs_are_compared_on_the_tasks_that_both_evaluated(agl: AGL, here: Path) -> None:
    one = make_run("one", {0: BASE, 8: SERVED}, 8)
    two = make_run("two", {0: BASE, 8: {"t01": 1.0, "t15": 0.0, "elsewhere": 1.0}}, 8)
    code, output = agl("compare", one.name, two.name)
    assert code == 0
    [row] = [row for row in words(output) if row[:1] == ["greedy"] and row[1] not in ("won:", "lost:")]
    assert row[1:4] == ["0.000", "0.500", "+0.500"]
    assert row[-3:] == ["1", "0", "1"]
    assert "elsewhere" not in output


def test_runs_without_a_common_task_cannot_be_compared(agl: AGL, here: Path) -> None:
    one, two = make_run("one", {0: BASE}, None), make_run("two", {0: {"x": 1.0}}, None)
    code, output = agl("compare", one.name, two.name)
    assert code == 1
    assert "have no evaluated task in common" in " ".join(output.split())
    never = make_run("never", {}, None)
    assert "was never evaluated" in " ".join(agl("compare", never.name)[1].split())
    assert "There is no run 'gone'" in " ".join(agl("compare", "gone")[1].split())


def test_a_look_at_a_run_does_not_keep_another_process_from_starting_it(here: Path) -> None:
    folder = RunFolder.create("runs", "one")
    assert not folder.in_use
    with folder.lock():
        assert folder.in_use
    assert not folder.in_use
    with (folder.path / ".lock").open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        timer = threading.Timer(0.02, fcntl.flock, (look, fcntl.LOCK_UN))
        timer.start()
        with folder.lock():
            timer.join()


@pytest.mark.parametrize("columns", [None, "40"])
def test_a_narrow_or_missing_terminal_keeps_each_name_whole(
    agl: AGL, here: Path, monkeypatch: pytest.MonkeyPatch, columns: str | None
) -> None:
    run = make_run("a-rather-long-name-of-a-run-that-nobody-would-like-to-see-in-two-parts", {0: BASE, 8: SERVED}, 8)
    monkeypatch.delenv("COLUMNS")
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    [line] = [line for line in agl("runs")[1].splitlines() if run.name in line]
    assert "stopped" in line
    if columns is None:
        assert run.name in agl("compare", "latest")[1]


def test_tasks_without_an_id_of_their_own_are_compared_by_what_they_ask(agl: AGL, here: Path) -> None:
    hashes = [f"{number:016x}" for number in range(16)]
    make_run("one", {0: dict.fromkeys(hashes, 0.0), 8: dict.fromkeys(hashes, 1.0)}, 8)
    assert f"greedy won: What is {hashes[0]}?, What is {hashes[1]}?" in agl("compare", "latest")[1]


def test_a_model_card_says_why_an_interval_is_missing() -> None:
    text = _results([{"step": 0, "eval.greedy": 0.5}, {"step": 1, "eval.greedy": 0.25}], 1)
    assert "| greedy | 0.500 | 0.250 | too few tasks changed |" in text


def write_metrics(run: RunFolder, tokens: Mapping[int, int], evaluated: set[int]) -> None:
    """`tokens`: sampled in each step."""
    metrics = JSONLines(run.path)
    for step in sorted({*tokens, *evaluated}):
        row: dict[str, JSON] = {"step": step, "sampled_tokens": tokens.get(step, 0)}
        metrics.log(row | ({"eval.greedy": 0.5} if step in evaluated else {}))


def test_two_runs_are_compared_after_as_many_tokens(agl: AGL, here: Path) -> None:
    """The longer run is read between two evaluations; its evaluation of a step before may be another run's."""
    tasks = [f"t{k:02}" for k in range(16)]
    short = make_run("short", {0: BASE, 8: dict.fromkeys(tasks, 0.25)}, 8)
    write_metrics(short, dict.fromkeys(range(1, 9), 100), {0, 8})
    long = make_run("long", {0: BASE, 8: dict.fromkeys(tasks, 1.0), 12: dict.fromkeys(tasks, 0.0)}, 8)
    write_metrics(long, dict.fromkeys(range(1, 13), 125), {0, 4, 8, 12})
    other = make_run("other", {3: dict.fromkeys(tasks, 0.5)}, 3)
    reused = [ReusedEvaluation(step=4, kind="greedy", run=f"../{other.path.name}", run_step=3, measured=1.0)]
    long.write_state(dataclasses.replace(long.read_state(), reused=reused))
    code, output = agl("compare", str(short.path), str(long.path), "--equal-tokens")
    assert code == 0, output
    assert "After 800 sampled tokens" in output
    [row] = [row for row in words(output) if row[:1] == ["greedy"] and row[1] not in ("won:", "lost:")]
    assert row[1:4] == ["0.250", "0.800", "+0.550"]  # 500 tokens at step 4, 1,000 at step 8: 0.4 * 0.5 + 0.6 * 1.0
    assert "steps 4 to 8" in " ".join(output.split())
    code, output = agl("compare", str(long.path), str(short.path), "--equal-tokens")
    assert [row[3] for row in words(output) if row[:2] == ["greedy", "0.800"]] == ["-0.550"]


def test_equal_tokens_need_two_runs_that_were_evaluated(agl: AGL, here: Path) -> None:
    done, begun = make_run("done", {0: BASE, 8: STRONG}, 8), make_run("begun", {0: BASE}, None)
    write_metrics(done, dict.fromkeys(range(1, 9), 100), {0, 8})
    write_metrics(begun, {1: 100}, {0})
    code, output = agl("compare", str(done.path), "--equal-tokens")
    assert (code, "Name another one" in output) == (2, True)
    code, output = agl("compare", str(done.path), str(begun.path), "--equal-tokens")
    assert (code, "begun was not evaluated after training began" in " ".join(output.split())) == (1, True)
    late = make_run("late", {40: STRONG}, 40)
    write_metrics(late, dict.fromkeys(range(1, 41), 100), {40})
    code, output = agl("compare", str(done.path), str(late.path), "--equal-tokens")
    assert (code, "late had sampled more than 800 tokens before its first evaluation" in " ".join(output.split())) == (1, True)


def test_rewards_can_be_read_by_other_weights(here: Path) -> None:
    """An agent whose judge decides the training keeps its own reward."""
    run = make_run("judged", {8: STRONG}, 8)
    write_metrics(run, {1: 100}, {8})
    _, [own] = asyncio.run(equal_tokens([run], {"return": 0.5}))
    assert sum(own.evaluation.rewards["greedy"].values()) == 7.0
    _, [side] = asyncio.run(equal_tokens([run]))
    assert sum(side.evaluation.rewards["greedy"].values()) == 14.0
