"""A run that is stopped, loses its last checkpoint, and is resumed, so that it repeats a step that its trackers have."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

import agentlightning as agl
from agentlightning.registry.registry import registry
from agentlightning.training.job import make_job
from agentlightning.training.progress import Progress
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.train import train_job
from agentlightning.types import JSON

ROOT = Path(__file__).parents[3]
TASKS = [{"id": f"task-{n}", "question": f"Write | line {n}."} for n in range(4)]
STEPS = 4


async def solve(task: Any, llm: agl.LLM) -> float:
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
        answer = await client.chat.completions.create(
            model=llm.model, messages=[{"role": "user", "content": task["question"]}], max_tokens=6
        )
    return sum(letter.isalpha() for letter in answer.choices[0].message.content or "") / 6


@dataclass(frozen=True)
class Tracked:
    """A run folder, its metrics, and what the run said and warned of."""

    folder: Path
    rows: list[dict[str, Any]]
    said: list[str]


def needs(tracker: str) -> pytest.MarkDecorator:
    """Skip tests without the library of a tracker. Nothing is imported: Trackio reads its environment variables when it is."""
    missing = registry().entry("trackers", tracker).missing
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


def documented(tracker: str) -> dict[str, str]:
    """What the table of docs/trackers.md says that a tracker shows: the first name in each cell, by the heading."""
    lines = (ROOT / "docs" / "trackers.md").read_text().partition("## What each one shows")[2].strip().splitlines()
    headings = [cell.strip() for cell in lines[0].strip("|").split("|")]
    [row] = [line for line in lines if line.startswith(f"| `{tracker}` |")]
    names = [re.findall("`([^`]+)`", cell) for cell in row.strip("|").split("|")]
    return {heading: name[0] for heading, name in zip(headings, names, strict=True) if name}


def warned(messages: Sequence[str]) -> list[str]:
    """The warnings about trackers."""
    return [message for message in messages if message.startswith("Tracker ")]


class StopAfter(Progress):
    """Stops a run after a step, and keeps its messages."""

    def __init__(self, step: int) -> None:
        self.at, self.stop, self.messages = step, asyncio.Event(), list[str]()

    def step(self, metrics: Any) -> None:
        if metrics["step"] == self.at:
            self.stop.set()

    def message(self, text: str) -> None:
        self.messages.append(text)


class Log(logging.Handler):
    """Keeps log messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages = list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def train(model: str, folder: Path, trackers: Sequence[JSON], *, stop: int = -1, resume: Path | None = None, **more: Any) -> Any:
    """Train, and return the run and what it said."""
    settings: dict[str, Any] = {
        "model": model, "folder": folder, "name": "tiny", "steps": STEPS, "tasks_per_step": 2, "trackers": list(trackers),
        "algorithm": agl.LightningRL(group_size=2), "trainer": {"name": "torch", "lr": 1e-3}, "eval": {"every": 2},
        "checkpoints": {"every": 1, "last": 9},
    }  # fmt: skip
    progress = StopAfter(stop)
    job = make_job(solve, tasks=TASKS, eval_tasks=TASKS[:2], **(settings | more))
    return asyncio.run(train_job(job, progress=progress, resume=resume, stop=progress.stop)), progress.messages


def stopped_and_resumed(model: str, folder: Path, trackers: Sequence[JSON]) -> tuple[Path, list[str]]:
    """Stop a run after step 2, lose the checkpoint of that step, and resume. Returns its folder, and what both sessions said and warned
    of."""
    log = Log()
    logging.getLogger("agentlightning").addHandler(log)
    half, said = train(model, folder, trackers, stop=2)
    run = RunFolder.open(half.folder)
    shutil.rmtree(run.checkpoint(2))
    whole, more = train(model, folder, trackers, resume=half.folder)
    assert not whole.stopped
    logging.getLogger("agentlightning").removeHandler(log)
    return whole.folder, said + more + log.messages
