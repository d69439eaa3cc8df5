"""`agl serve RUN` serves the prompts of a run to agents outside of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from rules import TASKS, adds_a_rule, follows_rules, settings, stored

import agentlightning as agl
from agentlightning.capture.prompts import prompts_of
from agentlightning.types import prompt_version
from judge_server import judge_server


@contextmanager
def serving(run: Path, folder: Path) -> Iterator[dict[str, str]]:
    """What `agl serve RUN` says of itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "agentlightning", "serve", str(run), "--port", "0"],
        cwd=folder,
        env={**os.environ, "AGL_STORE": f"sqlite:{folder / 'store.db'}", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = dict[str, str]()
    for line in process.stdout:
        if "Ctrl-C" in line:
            break
        name, _, value = line.strip().partition(" ")
        said[name] = value.strip()
    try:
        yield said
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        process.stdout.close()


def test_agents_outside_a_run_get_its_best_prompts_and_record_them(model: str, tmp_path: Path) -> None:
    with judge_server(adds_a_rule) as server:
        run = agl.train(follows_rules, tasks=TASKS, **settings(model, tmp_path, server, steps=4))
    best = run.result["prompts"]["best"]
    assert best != run.result["prompts"]["default"]
    with serving(run.folder, tmp_path) as said:
        assert said["prompts"] == f"system {prompt_version(best['system'])}"
        with agl.rollout(TASKS[0], store=said["store"], model=said["model"]) as rollout:
            rollout.reward(asyncio.run(follows_rules(TASKS[0], rollout.llm)))
            assert rollout.llm.prompt("other", default="mine") == "mine"
            own = {"Authorization": f"Bearer {rollout.llm.api_key}"}
            assert httpx.get(f"{said['base_url']}/prompts", headers=own).json() == best
        assert httpx.get(f"{said['base_url']}/prompts", headers=own).status_code == 401, "a key ends with its attempt"
        assert httpx.get(f"{said['base_url']}/prompts", headers={"Authorization": "Bearer x"}).status_code == 401
    ((_, (records,)),) = stored(tmp_path, mode="production")
    assert prompts_of(records) == {**best, "other": "mine"}
    assert records.calls[0].messages is not None
    assert records.calls[0].messages[0]["content"] == best["system"]
