"""The projects of `agl init`, each in a process of its own: run, trained and tested as they are written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from agentlightning.cli.init import EXTRAS, Kind, project_files
from agentlightning_torch.testing import tiny_model

KINDS = get_args(Kind)


def agl(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "agentlightning", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", [kind if kind == "langgraph" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def test_a_new_project_trains(tmp_path: Path, kind: Kind) -> None:
    model = tiny_model(tmp_path / "tiny").path
    agl(tmp_path, "init", kind)
    project = tmp_path / "my-agent"
    config = project / "config.toml"
    settings = {
        '"smollm2-135m" ': f'"{model}" ',
        "steps = 12": "steps = 1",
        '"top:10" ': '"top:1" ',
        "tasks_per_step = 8": "tasks_per_step = 1",
        "every = 6": "every = 1\ntasks = 2",
    }
    text = config.read_text()
    for old, new in settings.items():
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    agl(project, "train", "config.toml")
    [result] = project.glob("runs/*/result.json")
    assert json.loads(result.read_text())["finished"] is True
    shown = agl(project, "show")
    assert "8 train rollouts" in shown
    assert "failed" not in shown
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=project, capture_output=True, text=True)
    assert tests.returncode == 0, tests.stdout + tests.stderr


def test_a_project_is_not_written_over_files(tmp_path: Path) -> None:
    (tmp_path / "my-agent").mkdir()
    (tmp_path / "my-agent" / "agent.py").write_text("mine")
    done = subprocess.run([sys.executable, "-m", "agentlightning", "init"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "my-agent is not empty. Choose another folder with --folder" in done.stderr
    assert (tmp_path / "my-agent" / "agent.py").read_text() == "mine"


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_names_its_own_extra_and_keeps_its_tasks_apart(kind: Kind) -> None:
    files = project_files(kind)
    assert f"pip install 'agentlightning[{EXTRAS[kind]}]'" in files["README.md"]
    train, held_out = (set(files[name].splitlines()) for name in ("tasks.jsonl", "eval_tasks.jsonl"))
    assert len(train) == 384
    assert len(held_out) == 32
    assert not train & held_out
    for name in ("tasks.jsonl", "eval_tasks.jsonl"):  # one label for all earns no more than half
        labels = [json.loads(line)["label"] for line in files[name].splitlines()]
        assert labels.count("positive") == labels.count("negative") == len(labels) // 2
        assert labels[::2] == ["positive"] * (len(labels) // 2)  # and so does a step
