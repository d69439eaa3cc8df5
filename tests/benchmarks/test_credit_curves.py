"""The benchmark of credit runs at a tiny size, and its two credits differ in nothing but what they are for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console

from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.credit.identical import identical
from agentlightning.rl.credit.per_step import per_step

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "performance" / "credit.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("credit_curves", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_trains_both_and_draws_what_it_prints(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "credit.png"
    script.main(["--steps", "2", "--seeds", "1", "--tasks", "1", "--group", "4", "--tokens", "1", "2", "--chart", str(chart)])
    told = capsys.readouterr().out
    assert "skill with a luck of ±1" in told
    assert [line.split()[1] for line in told.splitlines() if line.count("± 0.000") == 2] == ["1", "2"]
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_the_second_turn_does_not_earn_the_first_ones_luck(script: ModuleType) -> None:
    assert list(script.CREDITS) == [identical.__name__, per_step.__name__]
    lucky, skill = np.array([1.0, -1.0]), np.array([0.25, 0.5])
    rollouts = RolloutArrays.from_arrays(lucky + skill, [0, 0], [0, 0, 1, 1], rewards=[1.0, 0.25, -1.0, 0.5])
    assert identical(rollouts).tolist() == [1.25, 1.25, -0.5, -0.5]
    assert per_step(rollouts, rollout_weight=script.CREDITS["per_step"]["rollout_weight"]).tolist() == [1.25, 0.25, -0.5, 0.5]


def test_what_was_gained_is_told_for_each_seed(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    curves = {"identical": np.array([[0.25, 0.25], [0.5, 0.25]]), "per_step": np.array([[0.25, 1.0], [0.25, 0.75]])}
    script.report(curves, 1.0, Console(width=120))
    told = capsys.readouterr().out
    assert "0.375 ± 0.125" in told
    assert "+0.375, +0.250" in told
    gained = {line.split("│")[1].strip(): line.split("│")[4:6] for line in told.splitlines() if line.count("│") == 7}
    assert {name: [each.strip() for each in cells] for name, cells in gained.items()} == {
        "identical": ["-0.062", "-"],
        "per_step": ["+0.312", "-"],
    }
    script.report({"identical": curves["identical"][:, ::-1], "per_step": curves["per_step"]}, 1.0, Console(width=120))
    assert "5.0" in capsys.readouterr().out
