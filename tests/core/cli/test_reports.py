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
from agentlightning.training.score import Scored
from agentlightning.training.train import Run


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
    print_run(Run(tmp_path / "x", {"steps": 3}, stopped=True), console)
    assert f"stopped after step 3. All finished steps are kept.\ncontinue with:  agl train --resume {tmp_path / 'x'}" in text(console)


def test_a_dry_run_warns_of_a_disk_that_is_too_small_and_names_the_first_failure(console: Console) -> None:
    print_dry_run(
        made(DryRun, disk_bytes=3 * 2**30, free_bytes=2**30, error="ValueError: [odd]", reward=None, failed=2, model=("Llama",)), console
    )
    for part in ("Llama", "not scored, 2 failed", "3.0 GiB", "disk is too small", "first failure: ValueError: [odd]"):
        assert part in text(console)


def test_scored_rollouts_are_summed_up(console: Console) -> None:
    report = made(
        Scored, folder=Path("runs/x"), rollouts=4, scored=3, reward=0.5, statuses={"succeeded": 3, "failed": 1}, requests={}, error=""
    )
    print_scored(report, console)
    for part in ("mean reward 0.500 over 3 scored", "attempts: 3 succeeded, 1 failed", "model calls: none", "agl show runs/x"):
        assert part in text(console)
