from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agentlightning.training.chart import reward_chart

ROWS = [
    {"step": 0, "eval.sampled": 0.2, "eval.greedy": 0.7},
    {"step": 1, "reward": 0.3, "reward_spread": 0.2},
    {"step": 2, "reward": 0.6, "reward_spread": 0.1, "eval.sampled": 0.8, "eval.greedy": 0.9},
]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[1:2], [{"step": 1, "reward": -3.0, "eval.greedy": None}]])
def test_a_curve_becomes_a_picture_however_little_was_measured(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    pytest.importorskip("matplotlib")
    reward_chart(rows, tmp_path / "reward.png", title="demo")
    picture = (tmp_path / "reward.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_without_rewards_there_is_no_picture(tmp_path: Path) -> None:
    reward_chart([{"step": 1, "loss": 1.0}], tmp_path / "reward.png", title="demo")
    assert not (tmp_path / "reward.png").exists()


def test_without_matplotlib_a_warning_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    reward_chart(ROWS, tmp_path / "reward.png", title="demo")
    assert "pip install 'agentlightning[torch]'" in caplog.text
