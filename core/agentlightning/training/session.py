"""One training run under way: the methods that an algorithm's loop calls, and the bookkeeping of each step.

A step is finished when its line is in `metrics.jsonl`. A resumed run cancels the rollouts of an unfinished step and repeats the step. A
checkpoint is always the state between two steps, so a resumed run does what an uninterrupted one would have done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentlightning.algorithms import base
from agentlightning.algorithms.prompt_search import PromptSearch
from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.errors import ConfigError, EngineError, HalfStep, Mismatch, TrainerError
from agentlightning.training.choice import incomplete
from agentlightning.training.evaluation import Evaluator, eval_metrics, evaluation_of, fullest_of
from agentlightning.training.evaluation_cache import notices
from agentlightning.training.lesson import Lesson, learned_by_all, metrics_of, trained_metrics
from agentlightning.training.prompt_trials import RunTrials
from agentlightning.training.run_diagnosis import RunDiagnosis
from agentlightning.training.run_record import RunRecord
from agentlightning.training.run_state import RunState
from agentlightning.training.services import Services
from agentlightning.training.step_checks import StepChecks
from agentlightning.training.step_logprobs import StepLogprobs, write_step_logprobs
from agentlightning.training.step_source import Counts, StepSource
from agentlightning.training.tracked_run import evaluated_tasks, tracked_rollouts
from agentlightning.types import Policy, Trajectory

log = logging.getLogger("agentlightning")


class Session(base.Session):
    """The run that `Algorithm.run` receives; its protocol documents the methods that an algorithm calls."""

    def __init__(
        self,
        services: Services,
        record: RunRecord,
        *,
        source: StepSource,
        evaluator: Evaluator,
        checks: StepChecks,
        diagnosis: RunDiagnosis,
        trials: RunTrials | None,
    ) -> None:
        """`trials`: of a run with an agent and tasks."""
        self._trials = trials
        self._services, self._record, self._controls = services, record, services.controls
        self._source, self._limits, self._evaluator, self._checks = source, services.limits, evaluator, checks
        self._diagnosis = diagnosis
        self._source_ends = False
        """Whether the source has nothing for another step."""
        self._counts: Counts = {}
        """Of the source, for this step."""
        self._step_began = time.monotonic()
        self._seconds: dict[str, float] = {}
        """Of the parts of this step."""
        self._between_steps = True
        """Whether the weights are those of `state.step`."""
        self._collected = 0
        """Rollouts of this step."""
        self._logprobs: StepLogprobs | None = None
        """The trainers', of this step."""
        self._stepped: set[str] = set()
        """Policies whose weights have changed in this step."""
        self._mismatched: dict[int, int] = {}
        """Discarded rollouts of the steps that started again."""

    # --- an algorithm calls these ---

    @property
    def max_staleness(self) -> int:
        return self._services.max_staleness

    @property
    def trials(self) -> RunTrials:
        assert self._trials is not None  # the plan refuses a replay
        return self._trials

    @property
    def search(self) -> PromptSearch | None:
        return self.state.search

    def steps(self) -> Iterator[int]:
        for step in range(self.state.step, self._services.steps):
            if self._evaluator.out_of_patience(self.state):
                self.say(
                    f"Stopping early after step {step}: the eval reward has not risen for {self.state.evals_without_gain} evaluations."
                )
                return
            if self._search_done:
                return
            if self._source_ends:
                rest = self._source.account()
                self.say(f"The store has nothing more to train on after step {step}." + (f" Left there: {rest}." if rest else ""))
                return
            self._controls.check()
            self._step_began, self._seconds, self._logprobs, self._stepped = time.monotonic(), {}, None, set()
            yield step

    async def collect(self, step: int, group_size: int) -> list[Trajectory]:
        if self._source.samples:
            await self._services.clear_cache()
        self._controls.progress.phase(self._source.phase)
        with self._timed(self._source.name):
            collected, counts = await self._source.next(step, group_size)
        trajectories, limited = self._limits.apply(collected)
        self._counts, self._collected = counts | limited, len(trajectories)
        if step in self._mismatched:
            self._counts["rollouts_mismatched"] = float(self._mismatched[step])
        if step == self.state.step == 0:
            self._checks.first_step(trajectories)
        return trajectories

    def say(self, text: str) -> None:
        self._controls.progress.message(text)

    async def values(self, batch: Batch, policy: str | None = None) -> NDArray[np.float64]:
        self._controls.progress.phase("training")
        return await self._services.trainers[self._name(policy)].values(batch)

    async def teacher_logprobs(self, batch: Batch) -> NDArray[np.float64]:
        if self._services.teacher is None:
            raise ConfigError("The algorithm asks a teacher, and the run has none. Add a [teacher] table, or remove teacher_coef.")
        self._controls.progress.phase("asking the teacher")
        with self._timed("teacher"):
            return await self._services.teacher.logprobs(batch)

    async def update(self, batch: Batch, loss: LossSettings, policy: str | None = None) -> dict[str, float]:
        engine, name = self._services.engine, self._name(policy)
        trainer = self._services.trainers[name]
        self._controls.progress.phase("training")
        with self._timed("training"):
            if not self._services.overlap:
                await engine.pause()
            try:
                before = trainer.policy
                after, metrics = await self._take_step(name, batch, loss)
                if trainer.old_logprobs is not None:
                    logprobs = StepLogprobs.of(before.version, batch, trainer.old_logprobs)
                    self._logprobs = logprobs if self._logprobs is None or policy is None else self._logprobs.joined(logprobs)
                if after != before:
                    await self._services.store.publish(after)
                metrics |= await self._services.weight_syncs[name].serve(after)
            finally:
                if not self._services.overlap:
                    await engine.resume()
        served = engine.policies.get(after.name, engine).policy
        if served.version != after.version:
            raise EngineError(
                f"The engine serves version {served.version}, but the trainer made version {after.version}, so new samples "
                "would come from another policy. Check that the engine's `load` serves the version it receives."
            )
        return {**metrics, "policy_version": float(after.version)}

    async def finish_step(
        self,
        step: int,
        trajectories: Sequence[Trajectory],
        returns: Sequence[Any],
        advantages: Sequence[Any],
        batch: Batch,
        metrics: dict[str, float],
        search: PromptSearch | None = None,
    ) -> None:
        await self.finish(step, trajectories, [Lesson(trajectories, returns, advantages, batch, metrics)], search)

    async def finish(
        self, step: int, trajectories: Sequence[Trajectory], lessons: Sequence[Lesson], search: PromptSearch | None = None
    ) -> None:
        """`finish_step` for one lesson, or for one of each policy. `trajectories`: as they were collected."""
        finished = step + 1
        row: dict[str, Any] = {"step": finished, **metrics_of(trajectories, lessons), **self._counts, **trained_metrics(lessons)}
        row |= self._diagnosis.measure(trajectories)
        row.pop("tokens_per_second", None)  # the trainer's, of training: here it is the speed of sampling
        sampling = time.monotonic() - self._step_began if self._services.overlap else self._seconds.get("rollouts")
        if sampling and row["sampled_tokens"]:
            row["tokens_per_second"] = row["sampled_tokens"] / sampling
        alarm = self._checks.alarm(row)
        if alarm is not None:
            row["alarm"] = "mismatch_abs"
            log.warning(alarm)  # also without progress
        for notice in self._checks.notices(row, trajectories):
            self.say(notice)
        self._source.learn(trajectories)
        learned = learned_by_all(trajectories, lessons)
        self._record.folder.write_batch(finished, learned)
        if self._logprobs is not None:
            write_step_logprobs(self._record.folder.logprobs(finished), self._logprobs)
        if self._services.export is not None:
            self._services.export.step(trajectories, learned)
        self._count_scores(row)
        row |= self._source.counts() | {f"seconds.{name}": seconds for name, seconds in self._seconds.items()}
        row["seconds"] = time.monotonic() - self._step_began
        self._record.state = replace(self.state, step=finished, search=search)
        self._save(unlogged=row)
        self._between_steps = True
        if shown := self._record.trackers.rollouts:
            self._record.trackers.log_rollouts(finished, await tracked_rollouts(self._source.store, trajectories, shown))
        self._source_ends = not await self._source.more()
        await self._evaluate_and_log(row)
        if search is not None or self._record.checkpoint_due(last=self._is_last(finished)):
            await self._record.write_checkpoint()

    # --- the run calls these, around the algorithm ---

    @property
    def state(self) -> RunState:
        return self._record.state

    async def begin(self) -> None:
        """Evaluate before the first step, or finish the evaluation during which the run was stopped."""
        self._source_ends = not await self._source.more()
        row = self.state.unlogged
        if row is None and self.state.step == 0 and self._evaluator.due(0, last=False):
            row = {"step": 0}
        if row is not None:
            self._step_began = time.monotonic()
            await self._evaluate_and_log(row)

    async def start_again(self, mismatch: Mismatch) -> None:
        """Discard the rollouts of a step that was not trained, and have the engine load the weights again. Once in a step, then it is an
        `EngineError`."""
        step = self.state.step
        if step in self._mismatched:
            raise EngineError(
                f"Step {step + 1} was sampled again, and the rollouts still come from other weights. {mismatch} If the engine itself "
                "computes less exactly than the trainer, set algorithm.loss.correction = 'tis' and raise mismatch_limit."
            ) from mismatch
        log.warning("ALARM, step %d: not trained. %s The engine loads the weights again, and the step samples again.", step + 1, mismatch)
        self._mismatched[step] = self._collected
        await self._source.again()
        for name, sync in self._services.weight_syncs.items():
            await sync.reload(self._services.trainers[name].policy)

    async def end(self) -> None:
        """Cancel the groups that run ahead of the last step, and write the last checkpoint."""
        await self._services.collector.cancel()
        await self._record.write_checkpoint()

    async def rescue(self) -> None:
        """Write a checkpoint of the finished steps after the run was stopped or failed.

        In the middle of an optimizer step it writes nothing: a resumed run starts from the checkpoint before.
        """
        self._record.trackers.end = "stopped"
        if self._between_steps and self.state.step > 0:
            await self._record.write_checkpoint()

    # --- inside ---

    def _name(self, policy: str | None) -> str:
        return next(iter(self._services.trainers)) if policy is None else policy

    async def _take_step(self, name: str, batch: Batch, loss: LossSettings) -> tuple[Policy, dict[str, float]]:
        """Take a trainer's step. Only a `HalfStep`, and an error that is no `TrainerError`, leave other weights than before, as far as no
        other policy has taken its step."""
        self._between_steps, trainer = False, self._services.trainers[name]
        before = trainer.policy
        try:
            policy, metrics = await trainer.step(batch, loss)
        except TrainerError as error:
            if self._stepped and not isinstance(error, HalfStep):
                changed = ", ".join(sorted(self._stepped))
                raise HalfStep(f"Policy {name!r} could not take its step, and {changed} had taken theirs. {error}") from error
            self._between_steps = not isinstance(error, HalfStep)
            raise
        if policy != before:
            self._stepped.add(name)
        return policy, metrics

    @property
    def _search_done(self) -> bool:
        """Whether the search for prompts has spent its budget."""
        return self.state.search is not None and self.state.search.done

    def _is_last(self, finished: int) -> bool:
        return finished == self._services.steps or self._source_ends or self._search_done

    async def _evaluate_and_log(self, row: dict[str, Any]) -> None:
        """Evaluate if it is due, then log the step. A run that is stopped before the end keeps the row in its state, and no evaluation."""
        step, state = int(row["step"]), self.state
        if self._evaluator.due(step, last=self._is_last(step)):
            self._controls.progress.phase("evaluating")
            with self._timed("evaluation"):
                measured = await self._evaluator.measure(step, self.state)
            trajectories = measured.trajectories
            if self._services.export is not None:
                self._services.export.step(trajectories)
            for notice in notices(measured.reused, self._record.folder):
                self.say(notice)
            if step == 0:
                self._checks.first(trajectories)
            evaluation = evaluation_of(step, trajectories)
            if (reason := incomplete(evaluation, fullest_of(state))) is not None:
                self.say(reason)
            self._record.trackers.log_evaluation(step, evaluated_tasks(evaluation if step == 0 else state.first, evaluation, trajectories))
            row |= eval_metrics(trajectories)
            row["seconds.evaluation"] = self._seconds["evaluation"]
            row["seconds"] = row.get("seconds", 0.0) + self._seconds["evaluation"]
            state, change = await asyncio.to_thread(self._evaluator.decide, state, row, measured)
            row |= change
            self._count_scores(row)
        state = await self._diagnosis.after(state, row)
        self._record.log(row)
        self._record.state = state
        self._save(unlogged=None)

    def _count_scores(self, row: dict[str, Any]) -> None:
        """Add what the scoring of rollouts took since the last call."""
        if self._services.scoring is not None:
            for name, count in self._services.scoring.counts().items():
                row[name] = row.get(name, 0.0) + count

    def _save(self, *, unlogged: dict[str, Any] | None) -> None:
        finished = (self.state.step == self._services.steps or self._search_done) and unlogged is None
        self._record.save(sampler=self._source.state(), pending=self._source.pending(), unlogged=unlogged, finished=finished)

    @contextmanager
    def _timed(self, name: str) -> Generator[None]:
        began = time.monotonic()
        yield
        earlier = self._seconds.get(name, 0.0) if len(self._services.trainers) > 1 else 0.0  # each policy takes its step
        self._seconds[name] = earlier + time.monotonic() - began
