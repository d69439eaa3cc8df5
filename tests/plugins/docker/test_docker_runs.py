"""Whole runs with containers, in processes of their own: they train, and leave no container however they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import agentlightning as agl
from agentlightning.errors import ConfigError
from agentlightning.training.metrics import read_metrics
from agentlightning_torch.testing import tiny_model
from conftest import Containers

pytestmark = pytest.mark.slow
AGENT = """
from openai import OpenAI

def solve(task, llm):
    client = OpenAI(base_url=llm.base_url, api_key=llm.api_key)
    answer = client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": task["text"]}], max_tokens=6)
    return sum(c.isalpha() for c in answer.choices[0].message.content or "") / 6
"""
TASKS = [{"id": str(n), "text": text} for n, text in enumerate(["abc", "xyz"])]


def test_a_run_trains_on_rollouts_in_containers(containers: Containers, tmp_path: Path) -> None:
    (tmp_path / "contained_agent.py").write_text(AGENT)
    runner = containers.table(concurrency=2, options=["--volume", f"{tmp_path}:/programs:ro", "--env", "PYTHONPATH=/programs"])
    run = agl.train(
        "contained_agent:solve", tasks=TASKS, model=tiny_model(tmp_path / "tiny").path, folder=tmp_path, name="tiny", steps=1,
        tasks_per_step=2,
        algorithm=agl.LightningRL(group_size=2), trainer={"name": "torch", "lr": 1e-3}, runner=runner,
    )  # fmt: skip
    assert [(row["unscored"], row["transitions"]) for row in read_metrics(run.folder)] == [(0, 4)]
    assert containers.names() == []


def test_an_image_that_is_not_there_ends_the_run_before_it_begins(containers: Containers, tmp_path: Path) -> None:
    runner = {**containers.table(), "image": "no-such-image:1"}
    with pytest.raises(ConfigError, match=r"runner\.image is 'no-such-image:1'"):
        agl.train("agent:solve", tasks=TASKS, model=str(tmp_path / "none"), folder=tmp_path / "runs", runner=runner)
    assert not (tmp_path / "runs").exists()


class Run:
    """`agl rollout` whose two rollouts hang in their containers."""

    def __init__(self, containers: Containers, folder: Path) -> None:
        (folder / "programs").mkdir()
        (folder / "programs" / "hang.py").write_text("import time\nprint('hanging', flush=True)\ntime.sleep(600)\n")
        (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in TASKS))
        (folder / "tmp").mkdir()
        runner = containers.table(options=["--volume", f"{folder / 'programs'}:/programs:ro"])
        config: dict[str, Any] = {
            "command": "python3 /programs/hang.py", "tasks": "tasks.jsonl", "model": tiny_model(folder / "tiny").path, "runner": runner,
        }  # fmt: skip
        (folder / "config.toml").write_text(tomli_w.dumps(config))
        self.folders = folder / "tmp"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agentlightning", "rollout", "config.toml"], cwd=folder, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "TMPDIR": str(self.folders)},
        )  # fmt: skip


@pytest.fixture
def hanging(containers: Containers, tmp_path: Path) -> Iterator[Run]:
    run = Run(containers, tmp_path)
    try:
        assert containers.wait(2, 90), run.process.communicate(timeout=1)[0]
        yield run
    finally:
        run.process.kill()
        run.process.wait()


def test_ctrl_c_leaves_no_container(containers: Containers, hanging: Run) -> None:
    os.killpg(hanging.process.pid, signal.SIGINT)
    output, _ = hanging.process.communicate(timeout=40)
    assert hanging.process.returncode == 130, output
    assert containers.names() == []
    assert [path.name for path in hanging.folders.iterdir() if path.name.startswith("agl-docker-")] == []


def test_a_killed_run_leaves_no_container(containers: Containers, hanging: Run) -> None:
    hanging.process.kill()
    assert containers.wait(0, 20)
    deadline = time.monotonic() + 10
    while any(path.name.startswith("agl-docker-") for path in hanging.folders.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
