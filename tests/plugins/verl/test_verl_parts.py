"""The trainer `verl` and the agents in verl's own trainer are two parts."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

import agentlightning_verl
from agentlightning.errors import HalfStep, NonFinite
from agentlightning_verl.trainer import _check_finite

FOLDER = Path(agentlightning_verl.__file__).parent
IMPORT = re.compile(r"^\s*(?:from|import) agentlightning_verl\.(\w+)", re.MULTILINE)


def test_the_trainer_and_the_agent_loop_import_nothing_of_each_other() -> None:
    loop, trainer = sorted((FOLDER / "agent_loop").glob("*.py")), sorted(FOLDER.glob("*.py"))
    assert len(loop) > 1
    assert {name for file in loop for name in IMPORT.findall(file.read_text("utf-8"))} == {"agent_loop"}
    assert "agent_loop" not in {name for file in trainer for name in IMPORT.findall(file.read_text("utf-8"))}


def test_a_number_that_is_not_finite_says_whether_earlier_updates_of_the_step_changed_the_weights() -> None:
    _check_finite({"loss": 0.1, "grad_norm": 1.0}, 1)
    with pytest.raises(NonFinite, match="weights are unchanged"):
        _check_finite({"loss": math.nan, "grad_norm": 1.0}, 0)
    with pytest.raises(HalfStep, match="in update 2 of a step"):
        _check_finite({"loss": math.nan, "grad_norm": 1.0}, 1)
