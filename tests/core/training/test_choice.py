"""The choice of a run's weights by a paired test over the eval tasks."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import AsyncOpenAI
from rich.console import Console

import agentlightning as agl
from agentlightning.cli.train import print_run
from agentlightning.config.schema import EvalConfig, load_config
from agentlightning.serving.serve import served_model
from agentlightning.training.choice import Choice, Evaluation, choose, differences, worse
from agentlightning.training.evaluation import Evaluator, Measured, eval_metrics
from agentlightning.training.progress import Progress
from agentlightning.training.result import write_result
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import RunState
from agentlightning.types import Task, Trajectory


def evaluation(step: int, **kinds: list[float]) -> Evaluation:
    return Evaluation(step=step, rewards={kind: {f"{n:03}": reward for n, reward in enumerate(rewards)} for kind, rewards in kinds.items()})


def coins(seed: int, chance: float, tasks: int = 40) -> list[float]:
    return (np.random.default_rng(seed).random(tasks) < chance).astype(float).tolist()


def ones(count: int, tasks: int = 40) -> list[float]:
    """The first `count` tasks are right."""
    return [1.0] * count + [0.0] * (tasks - count)


def after(*evaluations: Evaluation, first: Evaluation | None = None) -> Choice:
    """The choice of a run with these evaluations."""
    choice, strongest = None, None
    for current in evaluations:
        choice = choose(choice, strongest, {} if first is None else differences(first, current), current)
        strongest = current if strongest is None or current.beats(strongest) else strongest
    assert choice is not None
    return choice


def test_the_highest_number_of_several_by_luck_is_not_chosen() -> None:
    lucky = 0
    for seed in range(20):
        runs = [evaluation(step, sampled=coins(100 * seed + step, 0.4), greedy=coins(100 * seed + step + 50, 0.4)) for step in (5, 10, 15)]
        lucky += after(*runs).step != 15
    assert lucky <= 2  # of 20; the highest number would be another step in two of three


def test_a_step_that_is_worse_beyond_doubt_is_not_chosen() -> None:
    choice = after(evaluation(5, sampled=ones(20)), evaluation(10, sampled=ones(14)))
    assert (choice.step, choice.against) == (5, 10)
    assert "step 10 worse than step 5: sampled -0.150 (95% interval -0.2" in choice.reason
    assert after(evaluation(5, sampled=ones(20)), evaluation(10, sampled=ones(15))).step == 10  # five tasks prove nothing


def test_greedy_counts_as_much_as_sampled() -> None:
    before = evaluation(5, sampled=ones(10), greedy=ones(16))
    assert after(before, evaluation(10, sampled=ones(11), greedy=ones(6))).step == 5
    assert after(before, evaluation(10, sampled=ones(18), greedy=ones(8))).step == 5  # one falls, and together they do not rise
    assert after(before, evaluation(10, sampled=ones(10), greedy=ones(16))).step == 10
    assert after(before, evaluation(10, sampled=ones(38), greedy=ones(9))).step == 10  # together they rise


def test_slow_harm_is_seen_against_the_strongest_step() -> None:
    runs = [evaluation(step, sampled=ones(30 - step)) for step in (2, 5, 8, 11, 14)]
    assert after(*runs[:2]).step == 5
    assert after(*runs).step == 5  # from one step to the next only three tasks change


def test_differences_pair_the_tasks_and_leave_out_those_without_a_score() -> None:
    one = Evaluation(step=0, rewards={"sampled": {"a": 1.0, "b": 0.0, "c": 0.5}, "greedy": {"a": 1.0}})
    two = Evaluation(step=5, rewards={"sampled": {"a": 0.0, "b": 0.0, "d": 0.5}, "greedy": {"a": 1.0}})
    difference = differences(one, two)
    assert difference["sampled"].interval.mean == -0.5
    assert (difference["sampled"].interval.pairs, difference["sampled"].changed) == (2, 1)
    assert difference["both"].interval.mean == -0.5
    assert difference["both"].interval.pairs == 1
    assert differences(one, Evaluation(step=5, rewards={})) == {}
    assert not worse({})


def test_gsm_trial_keeps_the_model_before_training() -> None:
    """120 problems: sampled 0.133 to 0.142, greedy 0.258 to 0.108."""
    first = evaluation(0, sampled=ones(16, 120), greedy=ones(31, 120))
    choice = after(evaluation(22, sampled=ones(17, 120), greedy=ones(13, 120)), first=first)
    assert (choice.step, choice.against) == (0, 22)
    assert choice.difference["greedy"].falls
    assert not choice.difference["sampled"].falls
    assert "The run made the agent worse. A paired test of step 22 finds sampled +0.008" in choice.reason


def test_a_step_that_recovers_from_harm_is_chosen_and_one_that_falls_back_is_not() -> None:
    first = evaluation(0, sampled=ones(20))
    low, recovered, lower = (evaluation(step, sampled=ones(count)) for step, count in ((5, 10), (10, 19), (15, 9)))
    assert after(low, first=first).step == 0
    assert after(low, recovered, first=first).step == 10
    assert after(low, recovered, lower, first=first).step == 10
    assert after(low, evaluation(10, sampled=ones(3)), first=first).step == 0
    assert after(low).step == 5  # nothing is known of the model before training


def judged(*evaluations: dict[str, list[float | None]]) -> RunState:
    """The state after evaluations of the steps 0, 5, 10, ...; None: a rollout without a reward."""
    evaluator: Any = Evaluator(None, EvalConfig(), [], None)  # type: ignore[arg-type]
    state = RunState()
    for number, kinds in enumerate(evaluations):
        rollouts = [
            Trajectory(
                rollout_id=f"{kind}-{task}", task=Task(id=str(task), input=None), mode="eval", group=f"{kind}-{task}", index=0,
                attempt_id="", status="succeeded", reward=reward,
            )
            for kind, rewards in kinds.items()
            for task, reward in enumerate(rewards)
        ]  # fmt: skip
        row = {"step": 5 * number, **eval_metrics(rollouts)}
        state, _ = evaluator.decide(state, row, Measured(rollouts, [], number, {}))
    return state


def test_an_evaluation_with_few_scored_rollouts_changes_no_choice() -> None:
    usual, lucky = {"sampled": ones(24, 60)}, {"sampled": [1.0, 1.0, *[None] * 58]}
    state = judged(usual, usual, lucky)
    assert (state.best_step, state.best, state.strongest and state.strongest.step) == (5, 0.4, 5)
    assert state.evaluated is not None
    assert state.evaluated.step == 10
    assert judged(usual, lucky).choice is None
    harmed = judged(usual, lucky, {"sampled": ones(10, 60)})
    assert (harmed.best_step, harmed.best) == (0, 0.4), "the paired test still sees the harm"


def test_an_evaluation_that_scored_more_replaces_an_incomplete_one() -> None:
    state = judged({"sampled": [1.0, 1.0, *[None] * 58]}, {"sampled": ones(24, 60)})
    assert (state.best_step, state.best) == (5, 0.4)
    some = [*ones(24, 50), *[None] * 10]
    assert judged({"sampled": ones(20, 60)}, {"sampled": ones(21, 60)}, {"sampled": some}).best_step == 10  # five in six are enough


def test_the_strongest_evaluation_is_found_over_the_tasks_that_both_scored() -> None:
    easy = evaluation(10, sampled=ones(20, 36))  # the four tasks that it did not score are wrong
    assert not easy.beats(evaluation(5, sampled=ones(20)))


TASKS = [{"text": f"task {n}"} for n in range(8)]


async def letters(task: Any, llm: agl.LLM) -> float:
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        messages: list[Any] = [{"role": "user", "content": task["text"]}]
        answer = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=8)
        return sum(character.isalpha() for character in (answer.choices[0].message.content or "")[:8]) / 8


def train(model: str, folder: Path, agent: Any = letters, **more: Any) -> agl.Run:
    settings: dict[str, Any] = {"steps": 2, "eval": {"every": 1}, "trainer": {"name": "torch", "lr": 1e-3}, **more}
    return agl.train(
        agent, tasks=TASKS, eval_tasks=TASKS, model=model, folder=folder, tasks_per_step=2,
        algorithm=agl.LightningRL(group_size=4), progress=False, **settings,
    )  # fmt: skip


def agree(run: agl.Run) -> dict[str, Any]:
    """Check that `result.json` and `agl serve` name the same weights; return the result."""
    result = json.loads((run.folder / "result.json").read_text())
    served = served_model(str(run.folder), Progress())
    assert served.policy is not None
    assert Path(served.files.path) == run.checkpoint == run.folder / result["checkpoint"]
    trained = run.checkpoint.name == f"step-{result['policy_step']:05d}"
    assert trained == (result["policy_step"] > 0)
    assert served.policy.version == result["policy_version"]
    assert served.weights == f"step {result['policy_step']}. {result['policy_reason']}"
    return result


def test_the_result_and_the_server_name_the_same_weights(model: str, tmp_path: Path) -> None:
    result = agree(train(model, tmp_path))
    assert result["best"]["step"] == result["policy_step"] > 0
    assert result["best"]["reason"] == result["policy_reason"]
    assert set(result["best"]["change"]) == {"sampled", "greedy", "both"}
    assert set(result["best"]["change"]["greedy"]) == {"mean", "low", "high", "pairs", "unpaired", "changed"}


async def spoiled(task: Any, llm: agl.LLM) -> float:
    """An agent whose reward falls after the evaluation before training."""
    score = await letters(task, llm)
    return 1.0 if next(CALLS) < 16 else score / 2


CALLS = iter(range(0))


def test_a_run_that_only_harmed_serves_the_model_before_training(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "CALLS", iter(range(10_000)))
    run = train(model, tmp_path, spoiled, steps=1, renderer="text")
    result = agree(run)
    assert result["best"]["step"] == result["policy_step"] == result["policy_version"] == 0
    assert (result["best"]["against"], run.checkpoint) == (1, Path(model))
    assert "The run made the agent worse. A paired test of step 1 finds sampled -0." in result["policy_reason"]
    assert result["policy_reason"].endswith("So these weights are those of the model before training.")
    assert served_model(str(run.folder), Progress()).rendering.renderer == "text"  # as in the run that measured them
    out = StringIO()
    print_run(run, Console(file=out, width=1000))
    assert f"weights    {model}" in out.getvalue()
    assert "The run made the agent worse" in out.getvalue()


def test_without_the_files_of_the_model_before_training_the_last_checkpoint_stays(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "CALLS", iter(range(10_000)))
    folder = RunFolder.open(train(model, tmp_path, spoiled, steps=1).folder)
    config = replace(load_config(folder.path / "config.toml"), model="owner/hub-id")
    write_result(folder, folder.read_state(), config, weights="owner/hub-id")
    result = folder.read_result()
    assert result["policy_step"] == 1
    assert str(result["policy_reason"]).endswith("Serve the model before training instead.")


def test_without_an_evaluation_the_last_checkpoint_is_served(model: str, tmp_path: Path) -> None:
    run = agl.train(
        letters, tasks=TASKS, model=model, folder=tmp_path, tasks_per_step=1, steps=1,
        algorithm=agl.LightningRL(group_size=2), progress=False,
    )  # fmt: skip
    result = agree(run)
    assert "best" not in result
    assert "no step after training began was evaluated" in result["policy_reason"]


def test_a_best_step_without_a_checkpoint_is_not_said_to_be_served(model: str, tmp_path: Path) -> None:
    good = iter([0.1] * 16 + [0.4, 0.6] * 4 + [1.0] * 16 + [0.4, 0.6] * 4 + [0.05] * 100)

    async def best_first(task: Any, llm: agl.LLM) -> float:
        await letters(task, llm)
        return next(good)

    settings = {"runner": {"concurrency": 1}, "checkpoints": {"best": False, "every": 0}}
    result = agree(train(model, tmp_path, best_first, **settings))
    assert (result["best"]["step"], result["policy_step"]) == (1, 2)
    assert "step 1 (the best one) has none" in result["policy_reason"]


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_keeps_what_the_choice_needs(model: str, tmp_path: Path, stop: int) -> None:
    exact = {"engine": {"name": "torch", "max_batch": 1}, "runner": {"concurrency": 1}}
    complete = RunFolder.open(train(model, tmp_path / "a", steps=3, **exact).folder).read_state()
    first = train(model, tmp_path / "b", steps=stop, **exact)
    resumed = RunFolder.open(train(model, tmp_path / "b", steps=3, resume=first.folder, **exact).folder).read_state()
    assert resumed.first == complete.first
    assert resumed.strongest == complete.strongest
    assert resumed.choice == complete.choice
