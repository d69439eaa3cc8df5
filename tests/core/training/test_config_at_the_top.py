"""The whole config reaches only the files that take it apart; every other part of a run receives its own table."""

from __future__ import annotations

import ast
from pathlib import Path

import agentlightning.training

FOLDER = Path(agentlightning.training.__path__[0])
TOP = {
    "job.py",
    "train.py",
    "plan.py",
    "services.py",
    "dry_run.py",
    "score.py",
    "rollouts.py",
    "result.py",
    "evaluation_key.py",
    "production/opening.py",
    "rewards/scoring.py",
}


def imports_config(file: Path) -> bool:
    imports = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    return any(node.module == "agentlightning.config.schema" and "Config" in {name.name for name in node.names} for node in imports)


def test_the_whole_config_reaches_only_the_files_that_take_it_apart() -> None:
    assert {str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*.py") if imports_config(file)} == TOP
