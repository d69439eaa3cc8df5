"""Never evaluates the same weights twice: an evaluation of this run, or of an earlier run's model before training, stands in.

There is no store of its own. A run whose evaluation before training is complete leaves its key in `evaluation.json`; its rollouts are in
its `store.db`. A search for prompts trains no weights, so it leaves a key for each of its evaluations, and the training that follows begins
with the last one. A run that is removed takes its evaluations along.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from agentlightning.errors import ConfigError, RunError, StoreError
from agentlightning.files import disk_errors
from agentlightning.stores.common import open_store
from agentlightning.training.eval_rollouts import KINDS, Kind, Place, kind_of, place_of, read_evaluation
from agentlightning.training.evaluation_key import EvaluationKey, code_digest, evaluation_key, loaded_code
from agentlightning.training.job import Job
from agentlightning.training.plan import Plan, TrainingPlan
from agentlightning.training.rollouts import ReadTrajectory, trajectory_reader
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import BaseEvaluation, ReusedEvaluation, RunState
from agentlightning.types import Rollout, Trajectory

log = logging.getLogger("agentlightning")

MakeKey = Callable[[Mapping[str, str]], EvaluationKey | None]
"""Returns the key of an evaluation with these prompts. It may read files."""


@dataclass(slots=True)
class Earlier:
    """The rollouts of an evaluation that ran earlier. A kind is complete, or it is absent."""

    reused: list[ReusedEvaluation] = field(default_factory=list[ReusedEvaluation])
    trajectories: dict[Place, Trajectory] = field(default_factory=dict[Place, Trajectory])

    def missing(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Return the rollouts that must still run."""
        return [rollout for rollout in rollouts if place_of(rollout) not in self.trajectories]

    def join(self, rollouts: Sequence[Rollout], trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """Return the trajectories of all rollouts, in order, with those of the missing ones."""
        rest = iter(trajectories)
        return [
            self.trajectories[place] if (place := place_of(rollout)) is not None and place in self.trajectories else next(rest)
            for rollout in rollouts
        ]


class EvaluationCache:
    """Finds the evaluations that a run need not repeat."""

    def __init__(
        self, folder: RunFolder, runs: Path, read: ReadTrajectory, key: MakeKey, *, trains_weights: bool = True, reuse: bool = True
    ) -> None:
        """`runs`: a folder with earlier runs, and with benchmarks. `key`: of the model before training. Without `reuse` nothing is
        found."""
        self._folder, self._runs, self._read, self._make_key, self._reuse = folder, runs, read, key, reuse
        self._trains_weights = trains_weights
        self._key: EvaluationKey | None = None
        self._steps: set[int] = set()
        """Steps evaluated since this process opened the run. Before that, the agent and its reward may have been others."""

    async def of_step(self, step: int, state: RunState, version: int, rollouts: Sequence[Rollout]) -> Earlier:
        """Return what is known of a step's evaluation, with the policy in this version."""
        self._steps.add(step)
        if step == 0:
            return await self.of_base(rollouts, step)
        last = state.evaluated
        same = last is not None and last.version == version and all(rollout.prompts == last.prompts for rollout in rollouts)
        if not same or last is None or last.step not in self._steps or not self._reuse:
            return Earlier() if self._trains_weights else await self.of_base(rollouts, step)
        self._key, earlier = None, Earlier()
        for kind in KINDS:
            source = next((entry for entry in state.reused if (entry.step, entry.kind) == (last.step, kind)), None)
            run, run_step, measured = (source.run, source.run_step, source.measured) if source else (".", last.step, last.measured)
            entry = ReusedEvaluation(step=step, kind=kind, run=run, run_step=run_step, measured=measured)
            await self._take(earlier, [entry], rollouts)
        return earlier

    async def of_base(self, rollouts: Sequence[Rollout], step: int = 0) -> Earlier:
        """Return what earlier runs know of the model before training, with the prompts of the rollouts."""
        prompts, self._key = rollouts[0].prompts if rollouts else {}, None
        try:
            self._key = await asyncio.to_thread(self._make_key, prompts)
        except (OSError, ValueError, TypeError, ConfigError) as error:  # a run does not fail because its files cannot be compared
            log.warning("Evaluations are not shared between runs: %s", error)
        earlier = Earlier()
        for run, evaluation in await asyncio.to_thread(self._candidates) if self._reuse else []:
            kinds = {entry.kind for entry in earlier.reused}
            await self._take(earlier, [entry for entry in self._entries(run, evaluation, step) if entry.kind not in kinds], rollouts)
        return earlier

    def forget(self, step: int) -> None:
        """Let other runs no longer reuse this run's evaluation of a step, because it runs again."""
        kept = self._kept()
        others = [evaluation for evaluation in kept if evaluation.step != step]
        if len(others) < len(kept):
            self._write(others)

    async def keep(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """Let other runs reuse the kinds of an evaluation before training that ran here, if every rollout of it was scored."""
        key, self._key = self._key, None
        if key is None:
            return
        code = await asyncio.to_thread(loaded_code)  # with the modules that the agent loaded while it ran
        if code is None or any(code.get(root) != digest for root, digest in key.code.items()):
            return
        scored = {kind for kind in KINDS if _is_scored([rollout for rollout in trajectories if kind_of(rollout.group) == kind])}
        kinds: dict[Kind, str] = {kind: digest for kind, digest in key.kinds.items() if kind in scored}
        if kinds:
            evaluation = BaseEvaluation(step=step, measured=time.time(), kinds=kinds, code=code)
            self._write([*self._kept(), evaluation])

    def _write(self, evaluations: Sequence[BaseEvaluation]) -> None:
        with disk_errors("write", self._folder.evaluation):
            if evaluations:
                self._folder.write_evaluations(evaluations)
            else:
                self._folder.evaluation.unlink(missing_ok=True)

    def _kept(self) -> list[BaseEvaluation]:
        try:
            return self._folder.read_evaluations()
        except RunError:  # another version wrote them
            return []

    def _candidates(self) -> list[tuple[RunFolder, BaseEvaluation]]:
        """The earlier runs that evaluated a kind of this key, the latest first."""
        key = self._key
        if key is None:
            return []
        digests = dict(key.code)
        fitting = list[tuple[RunFolder, BaseEvaluation]]()
        for run, evaluation in _evaluations(self._runs):
            if (
                not any(evaluation.kinds.get(kind) == digest for kind, digest in key.kinds.items())
                or not key.code.keys() <= evaluation.code.keys()
            ):
                continue
            for root in evaluation.code.keys() - digests.keys():
                digests[root] = code_digest(Path(root)) or ""
            if all(digests[root] == digest for root, digest in evaluation.code.items()):
                fitting.append((run, evaluation))
        return sorted(fitting, key=lambda pair: pair[1].measured, reverse=True)

    def _entries(self, run: RunFolder, evaluation: BaseEvaluation, step: int) -> list[ReusedEvaluation]:
        assert self._key is not None
        path = os.path.relpath(run.path, self._folder.path)
        return [
            ReusedEvaluation(step=step, kind=kind, run=path, run_step=evaluation.step, measured=evaluation.measured)
            for kind, digest in self._key.kinds.items()
            if evaluation.kinds.get(kind) == digest
        ]

    async def _take(self, earlier: Earlier, entries: Sequence[ReusedEvaluation], rollouts: Sequence[Rollout]) -> None:
        """Add the kinds that a store has completely, with the same tasks. All entries are of one run and step."""
        if not entries:
            return
        try:
            trajectories = await _read(self._folder.path / entries[0].run, entries[0].run_step, self._read)
        except (RunError, StoreError):  # another version wrote the store, or it is gone
            return
        for entry in entries:
            wanted = {place: rollout for rollout in rollouts if (place := place_of(rollout)) is not None and place[0] == entry.kind}
            same = [place for place, rollout in wanted.items() if place in trajectories and trajectories[place].task == rollout.task]
            if wanted and len(same) == len(wanted):
                earlier.trajectories |= {place: trajectories[place] for place in wanted}
                earlier.reused.append(entry)


def evaluation_cache(job: Job, plan: Plan, folder: RunFolder) -> EvaluationCache:
    """Return the cache of a run."""
    config = job.config
    runs = Path(job.earlier_runs or config.folder)

    def key(prompts: Mapping[str, str]) -> EvaluationKey | None:
        return evaluation_key(config, plan, job.eval_tasks, prompts)

    trains_weights = not isinstance(plan, TrainingPlan) or plan.algorithm.trains_weights
    return EvaluationCache(folder, runs, trajectory_reader(config), key, trains_weights=trains_weights, reuse=config.eval.cache)


async def _read(run: Path, step: int, read: ReadTrajectory) -> dict[Place, Trajectory]:
    folder = RunFolder.open(run)
    if not folder.has_store:
        return {}
    store = open_store(folder.store_address)
    try:
        return await read_evaluation(store, step, read)
    finally:
        await store.close()


def _evaluations(runs: Path) -> Iterator[tuple[RunFolder, BaseEvaluation]]:
    """Yield the runs in a folder, and in its folders of benchmarks, with each evaluation of their model."""
    for file in (*runs.glob("*/evaluation.json"), *runs.glob("*/*/evaluation.json")):
        run = RunFolder(file.parent.resolve())
        try:
            evaluations = run.read_evaluations()
        except RunError:  # another version wrote them
            continue
        yield from ((run, evaluation) for evaluation in evaluations)


def _is_scored(trajectories: Sequence[Trajectory]) -> bool:
    return bool(trajectories) and all(rollout.status == "succeeded" and rollout.reward is not None for rollout in trajectories)


def notices(reused: Iterable[ReusedEvaluation], folder: RunFolder) -> list[str]:
    """Return a sentence for each earlier evaluation that a run reuses."""
    sources: dict[tuple[str, int, float], list[ReusedEvaluation]] = {}
    for entry in reused:
        sources.setdefault((entry.run, entry.run_step, entry.measured), []).append(entry)
    return [_notice(entries, folder) for entries in sources.values()]


def _notice(entries: Sequence[ReusedEvaluation], folder: RunFolder) -> str:
    first, kinds = entries[0], " and ".join(entry.kind for entry in entries)
    when = datetime.fromtimestamp(first.measured).strftime("%Y-%m-%d %H:%M")
    run = "this run" if first.run == "." else f"run {(folder.path / first.run).resolve().name}"
    return (
        f"Step {first.step}: reused the {kinds} evaluation of the same weights from step {first.run_step} of {run}, {when}. "
        "To evaluate again, set eval.cache = false (`--no-eval-cache`)."
    )
