"""The trainer `verl` and the agents in verl's own trainer are two parts."""

from __future__ import annotations

import re
from pathlib import Path

import agentlightning_verl

FOLDER = Path(agentlightning_verl.__file__).parent
IMPORT = re.compile(r"^\s*(?:from|import) agentlightning_verl\.(\w+)", re.MULTILINE)


def test_the_trainer_and_the_agent_loop_import_nothing_of_each_other() -> None:
    loop, trainer = sorted((FOLDER / "agent_loop").glob("*.py")), sorted(FOLDER.glob("*.py"))
    assert len(loop) > 1
    assert {name for file in loop for name in IMPORT.findall(file.read_text("utf-8"))} == {"agent_loop"}
    assert "agent_loop" not in {name for file in trainer for name in IMPORT.findall(file.read_text("utf-8"))}
