"""Reads a run's measurements from its metrics and its store."""

from __future__ import annotations

import asyncio
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from agentlightning.errors import RunError
from agentlightning.records.accounts import Account, account
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.stores.common import open_store
from agentlightning.training.eval_rollouts import KINDS, Kind, Place, place_of, read_evaluation
from agentlightning.training.metrics import read_metrics
from agentlightning.training.rollouts import ReadTrajectory
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import ReusedEvaluation
from agentlightning.types import Trajectory

Scores = dict[str, list[float | None]]
"""Rewards by task id, one per rollout of the task. None means never scored."""


@dataclass(slots=True)
class Measured:
    """Measurements of one run."""

    rows: list[dict[str, Any]]
    """Rows of `metrics.jsonl`."""
    scores: dict[Kind, dict[int, Scores]]
    """Eval rewards by kind, step, and task."""
    account: Account
    """Requests and tokens, over all rollouts."""
    rollouts: Counter[str] = field(default_factory=Counter[str])
    """Number of rollouts by mode."""

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of the steps that measured `name`."""
        return [(row["step"], float(row[name])) for row in self.rows if row.get(name) is not None]

    def steps(self, kind: Kind) -> tuple[int | None, int | None]:
        """Return step 0 and the last later step with an evaluation. None replaces a missing one."""
        measured = [step for step, _ in self.curve(f"eval.{kind}")]
        return (0 if 0 in measured else None), max((step for step in measured if step > 0), default=None)


def read_run(folder: Path) -> Measured:
    """Read a run."""
    return asyncio.run(_read(RunFolder.open(folder)))


async def _read(run: RunFolder) -> Measured:
    config = tomllib.loads(run.config.read_text())
    read = partial(trajectory, agents=config.get("agents") or None, reward_weights=config.get("reward_weights"))
    batches = run.read_batches()
    measured = Measured(read_metrics(run.path), {kind: {} for kind in KINDS}, Account())
    counted: dict[int, dict[Place, Trajectory]] = {}
    store, cursor = open_store(run.store_address), 0
    try:
        while True:
            states, cursor = await store.list(after=cursor, limit=200)
            if not states:
                break
            for state in states:
                state, records = await store.read(state.rollout.id)
                attempt = read(state, records) if state.winner is not None else None
                measured.account += account(state, records, attempt, batches.get(state.rollout.id))
                measured.rollouts[state.rollout.mode] += 1
                rollout, place = state.rollout, place_of(state.rollout)
                if rollout.mode == "eval" and place is not None and attempt is not None and state.status in ("succeeded", "failed"):
                    # An interrupted evaluation is repeated. The later one counts.
                    counted.setdefault(rollout.step or 0, {})[place] = attempt
    finally:
        await store.close()
    for entry in run.read_state().reused if run.state.exists() else ():
        rollouts = await _read_reused(run, entry, read)
        counted.setdefault(entry.step, {}).update({place: attempt for place, attempt in rollouts.items() if place[0] == entry.kind})
    for step, rollouts in counted.items():
        for (kind, task, _), attempt in sorted(rollouts.items(), key=lambda item: item[0][2]):
            measured.scores[kind].setdefault(step, {}).setdefault(task, []).append(attempt.reward)
    return measured


async def _read_reused(run: RunFolder, entry: ReusedEvaluation, read: ReadTrajectory) -> dict[Place, Trajectory]:
    """Return the rollouts of another run's evaluation that this run reused; none if that run is gone."""
    try:
        store = open_store(RunFolder.open(run.path / entry.run).store_address)
    except RunError:
        return {}
    try:
        return await read_evaluation(store, entry.run_step, read)
    finally:
        await store.close()
