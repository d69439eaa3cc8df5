"""Why a run does not learn: a constructed run for each cause, on both sides of its threshold, and real runs with tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from rich.console import Console
from typer.testing import CliRunner

import agentlightning as agl
from agentlightning.cli.main import build
from agentlightning.cli.train import print_run
from agentlightning.config.schema import load_config
from agentlightning.training.causes_of_no_progress import QUIET_STEPS
from agentlightning.training.diagnose import diagnose
from agentlightning.training.metrics import read_metrics
from agentlightning.training.progress import TrainingProgress
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.step_history import Facts

Row = dict[str, Any]


def healthy(step: int) -> Row:
    """A step of a run of 8 groups of 8 rollouts that learns slowly: entropy falls, and the reward stays within its noise at first."""
    return {
        "step": step,
        "rollouts": 64,
        "reward": 0.30 + 0.005 * step,
        "reward_spread": 0.17,
        "reward_min": 0.0,
        "reward_max": 1.0,
        "groups": 8,
        "zero_variance_groups": 3,
        "zero_variance_reward": 0.2,
        "truncated_fraction": 0.1,
        "truncated_reward": 0.1,
        "tool_offers": 64,
        "tool_uses": 30,
        "agent_fraction": 0.6,
        "trained_tokens": 2000,
        "entropy": 1.0 - 0.02 * step,
        "grad_norm": 0.6,
        "kl": 0.01 * step,
        "clip_fraction": 0.1,
        "mismatch_abs": 0.001,
        "context.first": 64,
        "context.bridged": 60,
        "context.edited": 2,
    }


def run(steps: int, change: Callable[[int], Row] = lambda step: {}) -> list[Row]:
    """Rows of a healthy run with some numbers changed. A number that is None was not measured."""
    rows = [{**healthy(step), **change(step)} for step in range(1, steps + 1)]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def cause(rows: list[Row], **facts: Any) -> str | None:
    found = diagnose(rows, Facts(**facts))
    return None if found is None else found.cause


def always(**change: Any) -> Callable[[int], Row]:
    return lambda step: change


def since(first: int, **change: Any) -> Callable[[int], Row]:
    return lambda step: change if step >= first else {}


@pytest.mark.parametrize("steps", range(1, 41))
def test_a_healthy_run_has_no_diagnosis_at_any_step(steps: int) -> None:
    assert cause(run(steps)) is None


@pytest.mark.parametrize(
    ("name", "sick", "well"),
    [
        ("all_wrong", {"zero_variance_groups": 6, "zero_variance_reward": 0.05}, {"zero_variance_groups": 5, "zero_variance_reward": 0.05}),
        ("all_right", {"zero_variance_groups": 6, "zero_variance_reward": 0.9}, {"zero_variance_groups": 5, "zero_variance_reward": 0.9}),
        ("no_signal", {"zero_variance_groups": 6, "zero_variance_reward": 0.5}, {"zero_variance_groups": 5, "zero_variance_reward": 0.5}),
        ("tools_never_called", {"tool_uses": 1}, {"tool_uses": 2}),
        ("truncated", {"truncated_fraction": 0.5}, {"truncated_fraction": 0.49}),
        ("truncated", {"truncated_fraction": 0.9}, {"truncated_fraction": 0.9, "truncated_reward": 0.2}),
        ("truncated", {"truncated_fraction": 0.9}, {"truncated_fraction": 0.9, "truncated_reward": None}),
        ("few_tokens", {"agent_fraction": 0.25}, {"agent_fraction": 0.26}),
        ("never_scores", {"reward_max": 0.0, "reward": 0.0}, {"reward_max": 0.1, "reward": 0.0}),
        ("history_rewritten", {"context.edited": 8}, {"context.edited": 6}),
        ("kl_explosion", {"kl": 0.5}, {"kl": 0.49}),
        ("clipped", {"clip_fraction": 0.3}, {"clip_fraction": 0.29}),
    ],
)
def test_a_cause_is_named_beyond_its_threshold_and_only_there(name: str, sick: Row, well: Row) -> None:
    assert cause(run(5, always(**sick))) == name
    assert cause(run(5, always(**well))) is None


@pytest.mark.parametrize("name", ["zero_variance_groups", "truncated_fraction", "kl", "clip_fraction"])
def test_one_or_two_steps_of_a_sign_are_noise(name: str) -> None:
    sick = {"zero_variance_groups": 8, "zero_variance_reward": 0.0, "truncated_fraction": 0.9, "kl": 2.0, "clip_fraction": 0.9}[name]
    assert cause(run(10, since(9, **{name: sick}))) is None
    assert cause(run(10, since(8, **{name: sick}))) is not None


@pytest.mark.parametrize(
    "name", ["truncated_fraction", "tool_offers", "agent_fraction", "kl", "clip_fraction", "entropy", "context.bridged", "mismatch_abs"]
)
def test_a_number_that_was_not_measured_is_no_sign(name: str) -> None:
    assert cause(run(30, always(**{name: None}))) is None


def test_replies_at_the_limit_that_earn_everything_are_no_fault_of_the_limit() -> None:
    cut = {
        "truncated_fraction": 0.6,
        "reward_min": 1.0,
        "reward_max": 1.0,
        "reward": 1.0,
        "truncated_reward": 1.0,
        "zero_variance_groups": 8,
    }
    assert cause(run(4, always(**cut, zero_variance_reward=1.0))) == "all_right"
    nothing = {name: 0.0 if value == 1.0 else value for name, value in cut.items()}
    assert cause(run(4, always(**nothing, zero_variance_reward=0.0))) == "truncated"


def test_numbers_that_are_not_finite_are_no_sign() -> None:
    rows = [json.loads(json.dumps(row)) for row in run(8)]
    for row in rows:
        row |= {"entropy": None, "kl": None, "eval.greedy": None}
    assert cause(rows) is None


def test_groups_that_others_replace_are_no_sign() -> None:
    assert cause(run(5, always(groups=28, groups_resampled=20, zero_variance_groups=20, groups_filtered=20))) is None
    exhausted = always(groups=28, groups_resampled=20, zero_variance_groups=26, zero_variance_reward=0.5)
    found = diagnose(run(5, exhausted), Facts(filters=True, sampler="curriculum"))
    assert found is not None
    assert (found.cause, found.remedy) == ("no_signal", "Set a higher collection.resample.")


def test_groups_of_one_rollout_have_nothing_to_compare() -> None:
    assert cause(run(5, always(groups=64, zero_variance_groups=50, zero_variance_reward=None))) is None


UNSCORED = {
    "reward": None,
    "reward_spread": None,
    "reward_min": None,
    "reward_max": None,
    "trained_tokens": 0,
    "zero_variance_reward": None,
}


@pytest.mark.parametrize(
    ("counts", "evidence", "remedy"),
    [
        (
            {"unscored": 64, "failed": 60},
            "180 failed, 0 made no model call, and 12 ended without a reward",
            "`agl show` lists their errors",
        ),
        ({"unscored": 0, "failed": 0, "excluded_rollouts": 64}, "0 failed, 192 made no model call", "routed to the gateway"),
        ({"unscored": 64, "failed": 0}, "and 192 ended without a reward", "agl.reward(value)"),
    ],
)
def test_a_run_in_which_nothing_is_scored_any_more_is_diagnosed(counts: Row, evidence: str, remedy: str) -> None:
    rises = lambda step: {"reward": 0.1 * step} if step < 10 else {**UNSCORED, **counts}  # noqa: E731
    assert cause(run(11, rises)) is None
    found = diagnose(run(12, rises), Facts())
    assert found is not None
    assert found.cause == "not_scored"
    assert evidence in found.evidence
    assert remedy in found.remedy
    warm_up = always(**UNSCORED | {"trained_tokens": 100}, demonstrated_reward=1.0)
    assert cause(run(12, warm_up)) is None


def test_a_run_whose_replies_are_all_excluded_is_diagnosed_with_the_reason() -> None:
    excluded = since(8, trained_tokens=0, untrained_reason="too old")
    assert cause(run(9, excluded)) is None
    found = diagnose(run(10, excluded), Facts())
    assert found is not None
    assert (found.cause, found.evidence[-8:]) == ("nothing_trained", "too old.")
    assert cause(run(10, since(8, trained_tokens=0, untrained_reason="zero-variance group"))) is None
    filtered = since(8, trained_tokens=0, untrained_reason="filtered", zero_variance_groups=8, zero_variance_reward=0.0)
    assert cause(run(10, filtered)) == "all_wrong"


def test_the_first_try_on_spider_was_all_wrong() -> None:
    silent = [4, 5, 5, 4, 5, 4, 5, 5]
    rows = run(
        8,
        lambda step: {
            "reward": 0.04 + 0.0025 * step,
            "reward_spread": 0.08,
            "groups": 6,
            "zero_variance_groups": silent[step - 1],
            "zero_variance_reward": 0.0,
            "agent_fraction": 0.6,
        },
    )
    found = diagnose(rows, Facts())
    assert found is not None
    assert found.cause == "all_wrong"
    assert "In the last 3 steps, at least 67% of the groups had no signal" in found.evidence
    assert cause(rows[:3]) == "all_wrong"  # said before the fourth step, not after an hour


def test_a_run_whose_reward_rises_has_no_diagnosis_of_missing_progress() -> None:
    signs = {"truncated_fraction": 0.7, "tool_uses": 0, "agent_fraction": 0.1, "context.edited": 60}
    rising = lambda step: {"reward": 0.1 * step, "reward_spread": 0.1, **signs}  # noqa: E731
    assert cause(run(8, rising)) is None
    assert cause(run(8, always(**signs))) == "tools_never_called"


def test_a_solved_run_is_all_right_and_nothing_else() -> None:
    top = {"reward": 0.99, "entropy": 0.01, "zero_variance_groups": 7, "zero_variance_reward": 1.0, "truncated_fraction": 0.9}
    assert cause(run(8, always(**top))) == "all_right"


def collapse(step: int) -> Row:
    """`gsm_trial.py` with lr 4e-5: from 0.25 to 0 within six steps, and replies of end tokens up to the limit."""
    rewards = [0.05, 0.11, 0.16, 0.22, 0.25, 0.25, 0.19, 0.08, 0.03, 0.0, 0.0, 0.0]
    lost = step > 7
    return {
        "reward": rewards[step - 1],
        "reward_spread": 0.2 * rewards[step - 1],
        "zero_variance_groups": 8 if lost else 3,
        "zero_variance_reward": 0.0,
        "truncated_fraction": 1.0 if lost else 0.1,
    }


def facts(best: int | None, *steps: int, **more: Any) -> Facts:
    """Those of run `x` with checkpoints of these steps."""
    checkpoints = {step: f"runs/x/checkpoints/step-{step:05}" for step in steps}
    return Facts(**{"lr": 4e-5, "config": "runs/x/config.toml", "checkpoints": checkpoints, "best": best, **more})


def remedy(rows: list[Row], facts: Facts) -> str:
    found = diagnose(rows, facts)
    assert found is not None
    return found.remedy


def test_a_curriculum_that_runs_already_is_no_advice() -> None:
    for reward in (0.5, 1.0):
        rows = run(12, lambda step, reward=reward: {"reward": reward, "zero_variance_groups": 7, "zero_variance_reward": reward})
        assert "curriculum" in remedy(rows, Facts())
        assert "curriculum" not in remedy(rows, Facts(sampler="curriculum"))


def test_a_collapse_is_named_with_the_command_that_goes_back() -> None:
    rows = run(12, collapse)
    assert [cause(rows[:steps]) for steps in range(1, 10)] == [None] * 9
    found = diagnose(rows[:10], facts(5, 5, 9, 10))
    assert found is not None
    assert found.cause == "collapse"
    assert "from 0.240 to 0.000" in found.evidence
    assert "100% of the replies end at the token limit and 100% of the groups have no signal" in found.evidence
    assert found.remedy == (
        "Stop this run and go back to step 5 with a lower learning rate: "
        "agl train runs/x/config.toml --model runs/x/checkpoints/step-00005 --lr 1.0e-05"
    )
    assert "--lr 5.6e-06" in remedy(rows, facts(5, 5, suggested_lr=5.6e-6))


def test_the_way_back_names_no_checkpoint_from_within_the_collapse() -> None:
    start = "Stop this run and start it again with a lower learning rate: agl train runs/x/config.toml --lr 1.0e-05"
    assert remedy(run(12, collapse), facts(10, 10)) == start
    assert remedy(run(12, collapse), facts(0, 6, 7)) == start  # every evaluated step was worse than the model before training
    assert remedy(run(12, collapse), facts(None, 8, 10, 12)) == start  # the reward fell from step 6 on


def test_without_evaluations_the_way_back_is_the_newest_checkpoint_up_to_the_highest_reward() -> None:
    assert "--model runs/x/checkpoints/step-00006 --lr" in remedy(run(12, collapse), facts(None, 3, 6, 9, 12))


def test_an_agent_that_no_command_can_start_has_a_way_back_in_words() -> None:
    rows = run(12, collapse)
    words = 'Stop this run and go back to step 5. Set model = "runs/x/checkpoints/step-00005". Set trainer.lr = 1.0e-05.'
    assert remedy(rows, facts(5, 5, config=None)) == words
    assert remedy(rows, facts(5, config=None)) == "Stop this run and start it again. Set trainer.lr = 1.0e-05."


def at_once(step: int) -> Row:
    """The first update destroys the policy."""
    lost = {"reward": 0.0, "reward_spread": 0.0, "zero_variance_groups": 8, "zero_variance_reward": 0.0, "truncated_fraction": 1.0}
    return {"reward": 0.25, "reward_spread": 0.15} if step == 1 else lost


def test_a_collapse_after_the_first_update_is_named_as_soon_as_it_lasts() -> None:
    rows = run(6, at_once)
    assert [cause(rows[:steps]) for steps in (2, 3, 4, 5)] == [None, None, "collapse", "collapse"]
    found = diagnose(rows, facts(None))
    assert found is not None
    assert "The reward fell from 0.250 to 0.000" in found.evidence
    alone = [{**row, "groups": 1, "reward_spread": 0.0} for row in rows]  # the reward of one group has no known noise
    assert cause(alone[:4]) != "collapse"


def test_every_reply_at_the_limit_is_no_collapse_while_the_reward_is_that_of_the_model_before_training() -> None:
    cut = always(reward=0.3, truncated_fraction=1.0)
    base = {"step": 0, "eval.sampled": 0.3}
    assert cause([base, *run(6, cut)]) == "truncated"
    assert cause([{**base, "eval.sampled": 0.6}, *run(6, cut)]) == "collapse"
    assert cause([{**base, "eval.sampled": 0.6}, *run(6, always(reward=0.3))]) is None  # neither cut nor without signal


def test_a_reward_that_falls_without_a_sign_or_within_its_noise_is_no_collapse() -> None:
    falls = lambda step: {"reward": 0.3 if step < 6 else 0.05, "reward_spread": 0.05}  # noqa: E731
    assert cause(run(9, falls)) != "collapse"
    assert cause(run(9, lambda step: {**falls(step), **({"truncated_fraction": 0.8} if step > 5 else {})})) == "collapse"
    noisy = lambda step: {"reward": 0.3 if step < 6 else 0.22, "truncated_fraction": 0.8, "reward_spread": 0.2}  # noqa: E731
    assert cause(run(9, noisy)) == "truncated"


def test_a_fall_below_the_first_evaluation_is_a_collapse() -> None:
    low = always(reward=0.05, reward_spread=0.02, zero_variance_groups=6, zero_variance_reward=0.0)
    assert cause([{"step": 0, "eval.sampled": 0.4, "eval.greedy": 0.5}, *run(6, low)]) == "collapse"
    assert cause(run(6, low)) == "all_wrong"


def test_an_alarm_of_engine_and_trainer_comes_first() -> None:
    rows = run(6, always(reward_max=0.0, reward=0.0))
    rows[-1] |= {"alarm": "mismatch_abs", "mismatch_abs": 0.2}
    assert cause(rows) == "mismatch"


def test_an_entropy_that_is_gone_without_a_rising_reward_is_a_collapse_of_the_entropy() -> None:
    gone = lambda left: lambda step: {"reward": 0.3, "entropy": 1.0 if step < 5 else left}  # noqa: E731
    assert cause(run(8, gone(0.09))) == "entropy_collapse"
    assert cause(run(8, gone(0.11))) is None


def test_a_learning_rate_without_effect_needs_twenty_quiet_steps() -> None:
    quiet = always(reward=0.3, entropy=1.0)
    assert cause(run(QUIET_STEPS - 1, quiet)) is None
    found = diagnose(run(QUIET_STEPS, quiet), Facts(lr=1e-8, suggested_lr=2e-5))
    assert found is not None
    assert found.cause == "no_effect"
    assert "from 1.0e-08 to 2.0e-05" in found.remedy
    assert cause(run(30, lambda step: {"reward": 0.3, "entropy": 1.0 - 0.002 * step})) is None


def eval_row(step: int, sampled: tuple[float, float, float], greedy: tuple[float, float, float]) -> Row:
    """Changes from before training, each with its interval."""
    row: Row = {"eval.sampled": 0.14, "eval.greedy": 0.1}
    for kind, (change, low, high) in (("sampled", sampled), ("greedy", greedy)):
        row |= {f"eval.{kind}.change": change, f"eval.{kind}.change_low": low, f"eval.{kind}.change_high": high}
    return {**healthy(step), **row}


def test_a_greedy_reward_that_falls_while_the_sampled_one_rises_is_named() -> None:
    rows = run(21)
    found = diagnose([*rows, eval_row(22, (0.009, -0.05, 0.07), (-0.15, -0.23, -0.07))], Facts(lr=2e-5))
    assert found is not None
    assert found.cause == "greedy_falls"
    assert "-0.150" in found.evidence
    assert "+0.009" in found.evidence
    assert cause([*rows, eval_row(22, (0.009, -0.05, 0.07), (-0.05, -0.11, 0.01))]) is None
    assert cause([*rows, eval_row(22, (-0.1, -0.15, -0.05), (-0.15, -0.23, -0.07))]) == "eval_falls"
    assert cause([*run(1), eval_row(2, (0.0, -0.05, 0.05), (-0.15, -0.23, -0.07))]) is None


def test_rollouts_of_a_replay_say_nothing_about_the_policy() -> None:
    assert cause(run(5, always(reward_max=0.0, reward=0.0)), samples=False) is None
    assert cause(run(5, always(kl=0.9)), samples=False) == "kl_explosion"


# --- real runs ----------------------------------------------------------------------------------------------------------------------------

TASKS = [{"id": str(n), "text": text} for n, text in enumerate(["abc", "xyz", "hello", "12+3"])]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


async def ask(task: Any, llm: agl.LLM, **more: Any) -> str:
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        messages: list[Any] = [{"role": "user", "content": task["text"]}]
        answer = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=8, **more)
        return answer.choices[0].message.content or ""


async def wrong(task: Any, llm: agl.LLM) -> float:
    await ask(task, llm)
    return 0.0


async def wrong_with_tools(task: Any, llm: agl.LLM) -> float:
    await ask(task, llm, tools=[TOOL])
    return 0.0


async def letters(task: Any, llm: agl.LLM) -> float:
    return sum(character.isalpha() for character in (await ask(task, llm))[:8]) / 8


def settings(model: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "tasks": TASKS,
        "model": model,
        "folder": folder,
        "tasks_per_step": 2,
        "algorithm": agl.LightningRL(group_size=4),
        "trainer": {"name": "torch", "lr": 1e-3},
        "progress": False,
        **more,
    }


AGENT = """
from openai import AsyncOpenAI


async def solve(task, llm):
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        messages = [{"role": "user", "content": task["text"]}]
        await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=2)
    return 0.5
"""


class Line(TrainingProgress):
    """Progress on a console that is no terminal."""

    def __init__(self) -> None:
        self.out = StringIO()
        super().__init__(Console(file=self.out, width=1000))


def test_a_run_without_signal_says_so_once_with_two_replies(model: str, tmp_path: Path) -> None:
    progress = Line()
    run = agl.train(wrong, **settings(model, tmp_path, steps=4, progress=progress))
    lines = [line for line in progress.out.getvalue().splitlines() if line.startswith("Not learning")]
    assert len(lines) == 1
    assert lines[0].startswith("Not learning (truncated): 100% of the replies end at the token limit")
    assert "Replies begin with '" in lines[0]
    assert [row.get("diagnosis") for row in read_metrics(run.folder)] == [None, None, "truncated", "truncated"]
    assert run.result["diagnosis"]["cause"] == "truncated"
    assert " and '" in run.result["diagnosis"]["evidence"].partition("Replies begin with")[2]
    assert "Not learning (truncated): 100% of the replies" in CliRunner().invoke(build(), ["show", str(run.folder)]).output


def test_a_resumed_run_remembers_its_diagnosis_and_does_not_repeat_it(model: str, tmp_path: Path) -> None:
    first = agl.train(wrong, **settings(model, tmp_path, steps=3))
    assert RunFolder.open(first.folder).read_state().diagnosis is not None
    progress = Line()
    run = agl.train(wrong, **settings(model, tmp_path, steps=4, progress=progress, resume=first.folder))
    assert "Not learning" not in progress.out.getvalue()
    assert [row.get("diagnosis") for row in read_metrics(run.folder)] == [None, None, "truncated", "truncated"]


def test_offered_tools_and_cut_replies_are_counted(model: str, tmp_path: Path) -> None:
    run = agl.train(wrong_with_tools, **settings(model, tmp_path, steps=3, tasks_per_step=1))
    for row in read_metrics(run.folder):
        assert row["tool_offers"] == 4
        assert row["tool_uses"] == 0
        assert 0 <= row["truncated_fraction"] <= 1
        assert row["reward_min"] == row["reward_max"] == row["zero_variance_reward"] == 0
        assert "agent_fraction" not in row
    run = agl.train(wrong, **settings(model, tmp_path, steps=1))
    assert "tool_offers" not in read_metrics(run.folder)[0]


def test_a_real_run_that_learns_has_no_diagnosis(model: str, tmp_path: Path) -> None:
    many = [{"id": str(n), "text": f"task {n}"} for n in range(16)]
    run = agl.train(letters, **settings(model, tmp_path, tasks=many, tasks_per_step=4, steps=12))
    rows = read_metrics(run.folder)
    assert [row.get("diagnosis") for row in rows] == [None] * 12
    assert "diagnosis" not in run.result


def test_the_board_shows_the_diagnosis_in_a_line_until_it_is_gone() -> None:
    progress = TrainingProgress(Console(file=StringIO(), force_terminal=True, width=200))
    progress.begin(3)
    progress.step({"step": 1, "reward": 0.0})
    progress.diagnosis("Not learning (all_wrong): x", changed=True)
    assert "Not learning (all_wrong): x" in picture(progress)
    progress.diagnosis(None, changed=False)
    assert "Not learning" not in picture(progress)
    progress.end()


def test_the_command_of_the_way_back_trains_from_that_checkpoint_at_that_rate(model: str, tmp_path: Path) -> None:
    (tmp_path / "agent_of_a_command.py").write_text(AGENT)
    config = tmp_path / "first.toml"
    lines = ['agent = "agent_of_a_command:solve"', 'tasks = "tasks.jsonl"', f'model = "{model}"', "steps = 1", "tasks_per_step = 1"]
    config.write_text("\n".join([*lines, 'folder = "runs"', "trainer = { lr = 1e-4 }"]))
    (tmp_path / "tasks.jsonl").write_text('{"text": "a"}\n')
    invoked = CliRunner().invoke(build(), ["train", str(config)])
    assert invoked.exit_code == 0, invoked.output
    [first] = RunFolder.all(tmp_path / "runs")
    checkpoint = first.checkpoint(1)
    invoked = CliRunner().invoke(build(), ["train", str(first.config), "--model", str(checkpoint), "--lr", "2.5e-05"])
    assert invoked.exit_code == 0, invoked.output
    [_, second] = RunFolder.all(tmp_path / "runs")
    started = load_config(second.config)
    assert (started.model, started.trainer["lr"]) == (str(checkpoint), 2.5e-5)
    for option in (["--lr", "1e-5"], ["--model", model]):
        refused = CliRunner().invoke(build(), ["train", "--resume", str(second.path), *option])
        assert refused.exit_code == 2
        assert f"Remove {option[0]}" in " ".join(refused.output.split())


def test_a_terminal_shows_the_diagnosis_once(model: str, tmp_path: Path) -> None:
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=300)
    progress = TrainingProgress(console)
    done = agl.train(wrong, **settings(model, tmp_path, steps=3, progress=progress))
    before = out.getvalue().count("Not learning")
    assert "Not learning" in picture(progress)  # the last picture stays on the screen
    print_run(done, console, diagnosis=not progress.shows_diagnosis)
    assert out.getvalue().count("Not learning") == before > 0
    silent = TrainingProgress(Console(file=StringIO()))
    print_run(done, console, diagnosis=not silent.shows_diagnosis)
    assert out.getvalue().count("Not learning") == before + 1


def picture(progress: TrainingProgress) -> str:
    console = Console(file=StringIO(), width=200)
    console.print(progress.picture())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_reward_must_rise_by_two_standard_errors_to_count_as_learning() -> None:
    rise = lambda by: lambda step: {"reward": 0.3 + (by if step > 3 else 0), "tool_uses": 0}  # noqa: E731
    assert cause(run(6, rise(0.09))) == "tools_never_called"
    assert cause(run(6, rise(0.11))) is None


def evaluated(rows: list[Row], low: float, high: float) -> list[Row]:
    """Rows with an evaluation before training and after the last step."""
    change = {"eval.sampled.change": (low + high) / 2, "eval.sampled.change_low": low, "eval.sampled.change_high": high}
    return [{"step": 0, "eval.sampled": 0.3}, *rows[:-1], {**rows[-1], "eval.sampled": 0.3, **change}]


def test_with_a_curriculum_the_evaluations_tell_whether_a_run_learns() -> None:
    rising = run(6, lambda step: {"reward": 0.3 + 0.1 * step, "tool_uses": 0})
    assert cause(rising) is None
    assert cause(evaluated(rising, -0.1, 0.1)) is None
    assert cause(evaluated(rising, -0.1, 0.1), sampler="curriculum") == "tools_never_called", "the tasks became easier"
    flat = run(6, always(tool_uses=0))
    assert cause(evaluated(flat, 0.1, 0.2), sampler="curriculum") is None
    assert cause(rising, sampler="curriculum") is None, "without evaluations the reward decides"


def test_with_a_curriculum_harder_tasks_are_no_collapse() -> None:
    harder = lambda step: {"reward": 0.8 if step < 8 else 0.1, "truncated_fraction": 0.6, "truncated_reward": 0.5}  # noqa: E731
    assert cause(run(12, harder)) == "collapse"
    assert cause(evaluated(run(12, harder), 0.1, 0.2), sampler="curriculum") is None
    assert cause(evaluated(run(12, harder), -0.2, -0.1), sampler="curriculum") == "eval_falls"


def test_with_a_curriculum_the_evaluations_show_an_effect() -> None:
    quiet = run(QUIET_STEPS, always(reward=0.3, entropy=1.0))
    assert cause(evaluated(quiet, -0.1, 0.1), sampler="curriculum") == "no_effect"
    moving = run(QUIET_STEPS, lambda step: {"reward": 0.1 + 0.04 * step, "entropy": 1.0})
    assert cause(evaluated(moving, -0.1, 0.1), sampler="curriculum") == "no_effect"


def test_a_run_is_solved_above_95_percent_of_the_rewards_seen() -> None:
    assert cause(run(5, always(reward=0.94, tool_uses=0))) == "tools_never_called"
    assert cause(run(5, always(reward=0.96, tool_uses=0))) is None
