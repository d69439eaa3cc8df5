from __future__ import annotations

import io
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agentlightning.cli.rollout import print_scored
from agentlightning.cli.train import print_dry_run, print_run
from agentlightning.training.dry_run import DryRun
from agentlightning.training.group_signal import GroupSignal, Suggestion
from agentlightning.training.run import Run
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import RunState
from agentlightning.training.score import Scored


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def text(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def made(kind: Any, **values: Any) -> Any:
    """A report in which whatever is not given is 0."""
    return kind(**{field.name: values.get(field.name, 0) for field in fields(kind)})


def test_a_finished_run_says_what_it_learned_where_it_is_and_what_comes_next(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = {"eval": {"sampled": {"before": 0.2, "after": 0.8}}, "seconds": 187, "checkpoint": "checkpoints/step-00010"}
    print_run(Run(tmp_path / "runs" / "x", result), console)
    for part in ("+0.600", "3:07 min", "runs/x/checkpoints/step-00010", "agl show runs/x", "agl serve runs/x"):
        assert part in text(console)
    assert str(tmp_path) not in text(console)


def test_a_stopped_run_says_how_to_go_on(console: Console, tmp_path: Path) -> None:
    checkpoint(tmp_path / "x", 3)
    print_run(Run(tmp_path / "x", {"steps": 3}, stopped=True), console)
    assert f"stopped after step 3. All finished steps are kept.\ncontinue with:  agl train --resume {tmp_path / 'x'}" in text(console)


def checkpoint(folder: Path, step: int) -> None:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    with RunFolder(folder).new_checkpoint(RunState(step=step)):
        pass


def test_a_run_that_was_stopped_within_a_step_names_the_step_that_a_resumed_one_starts_from(console: Console, tmp_path: Path) -> None:
    print_run(Run(tmp_path / "x", {"steps": 3}, stopped=True), console)
    assert "stopped after step 3. There is no checkpoint yet, so a resumed run starts again." in text(console)
    checkpoint(tmp_path / "x", 2)
    print_run(Run(tmp_path / "x", {"steps": 3}, stopped=True), console)
    assert "stopped after step 3. The last checkpoint is of step 2, so a resumed run starts there." in text(console)


def test_a_dry_run_warns_of_a_disk_that_is_too_small_and_names_the_first_failure(console: Console) -> None:
    print_dry_run(
        made(DryRun, disk_bytes=3 * 2**30, free_bytes=2**30, error="ValueError: [odd]", reward=None, failed=2, model=("Llama",)), console
    )
    for part in ("Llama", "not scored, 2 failed", "3.0 GiB", "disk is too small", "first failure: ValueError: [odd]"):
        assert part in text(console)
    assert "signal" not in text(console), "it was not measured"


def test_a_dry_run_tells_in_plain_words_what_the_groups_teach_and_what_to_set(console: Console) -> None:
    signal = made(GroupSignal, size=8, groups=8, with_signal=2, low=0.07, high=0.59, chances={4: 0.2, 8: 0.31, 16: 0.42, 32: 0.53})
    suggestions = (Suggestion(setting="algorithm.group_size", now=8, value=32, reason="why"),)
    advice = "Use easier tasks."
    print_dry_run(
        made(
            DryRun, model=(), signal=signal, suggestions=suggestions, suggested_step_seconds=200, step_seconds=50, advice=advice, error=""
        ),
        console,
    )
    for part in (
        "Too little, because 50% or more is good: about 31% of the groups will have signal.",
        "It has signal only if their rewards differ",
        "2 of 8 groups do (95% interval 7% to 59%)",
        "20% of groups of 4, 31% of groups of 8, 42% of groups of 16, and 53% of groups of 32",
        "algorithm.group_size = 32 (now 8): why.",
        "One step then takes about 3:20 min",
        advice,
    ):
        assert part in text(console)


@pytest.mark.parametrize(
    ("saved", "low", "high", "says"),
    [
        (120.0, 60.0, 170.0, "saved about 120 of 384 rollouts (95% interval 60 to 170)"),
        (10.0, -30.0, 50.0, "no significant saving: about 10 of 384 rollouts (95% interval -30 to 50)"),
        (-50.0, -90.0, -10.0, "cost about 50 of 384 rollouts"),
    ],
)
def test_a_run_with_a_curriculum_says_how_many_rollouts_it_saved(
    console: Console, tmp_path: Path, saved: float, low: float, high: float, says: str
) -> None:
    sampler = {"rollouts": 384, "no_signal_rollouts": 96, "uniform_no_signal_rollouts": 96 + saved, "saved_rollouts": saved}
    sampler |= {"saved_rollouts_low": low, "saved_rollouts_high": high}
    print_run(Run(tmp_path, {"sampler": sampler, "checkpoint": "x"}), console)
    assert says in text(console)
    assert "25% were in groups without signal, and about" in text(console)


def test_scored_rollouts_are_summed_up(console: Console) -> None:
    report = made(
        Scored, folder=Path("runs/x"), rollouts=4, scored=3, reward=0.5, statuses={"succeeded": 3, "failed": 1}, requests={}, error=""
    )
    print_scored(report, console)
    for part in ("mean reward 0.500 over 3 scored", "attempts: 3 succeeded, 1 failed", "model calls: none", "agl show runs/x"):
        assert part in text(console)
