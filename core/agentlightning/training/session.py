"""One training run under way: what an algorithm's loop calls, and all the bookkeeping that it need not see.

A step is finished when its line is in `metrics.jsonl`. Rollouts of a step that was not finished are cancelled and made again; a
checkpoint is always the state between two steps, so that a resumed run does what an uninterrupted one would have done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentlightning.config.schema import Config
from agentlightning.config.tables import build_step_rewards
from agentlightning.config.tasks import Sampler
from agentlightning.contracts.batch import Batch
from agentlightning.contracts.engine import Engine
from agentlightning.contracts.loss import LossSettings
from agentlightning.contracts.store import LightningStore
from agentlightning.contracts.trainer import Trainer
from agentlightning.errors import AgentError, EngineError, JoinError, NonFinite
from agentlightning.registry.registry import registry
from agentlightning.rl.batch.build import ZERO_VARIANCE
from agentlightning.rl.trajectory.build import check_joins
from agentlightning.training.collector import Collector, Stopped
from agentlightning.training.evaluation import eval_metrics, evaluation_rollouts
from agentlightning.training.production import ProductionReplay
from agentlightning.training.progress import Progress
from agentlightning.training.run_folder import RunFolder, RunState
from agentlightning.training.step_groups import Counts, Gatherer
from agentlightning.training.summary import learned, summary
from agentlightning.training.weight_sync import WeightSync
from agentlightning.types import Task, Trajectory

log = logging.getLogger("agentlightning")


class Session:
    """What `Algorithm.run` is given."""

    def __init__(
        self,
        config: Config,
        *,
        store: LightningStore,
        engine: Engine,
        trainer: Trainer,
        weight_sync: WeightSync,
        sampler: Sampler,
        tasks: Sequence[Task],
        eval_tasks: Sequence[Task],
        folder: RunFolder,
        tracker: Any,
        progress: Progress,
        state: RunState,
        stop: asyncio.Event,
        runners: asyncio.Task[None],
        source: ProductionReplay | None = None,
    ) -> None:
        self.config, self.store, self.engine, self.trainer = config, store, engine, trainer
        self.state = state
        self._handover = weight_sync
        self._sampler, self._val_tasks = sampler, list(eval_tasks)
        self._folder, self._tracker, self._progress = folder, tracker, progress
        self._stop = stop
        self._source = source
        """Where training rollouts are found; None: the runners make them."""
        self._ends = False
        """Whether the source had nothing for a further step."""
        self._collector = Collector(
            store, runners, stop, progress, agents=config.agents, reward_weights=config.reward_weights,
            step_rewards=build_step_rewards(config.step_rewards),
        )  # fmt: skip
        self._ahead = config.collection.max_staleness > 0
        """Whether rollouts go on while the trainer steps; then the engine has weights of its own."""
        self._gatherer = Gatherer(
            config,
            self._collector,
            sampler,
            {task.id: task for task in tasks},
            longest=trainer.capabilities.max_sequence_tokens,
            left=state.extra.get("pending", ()),
        )
        self._counts: Counts = {}
        """Of the gathering of this step."""
        self._began = time.monotonic() - state.seconds
        self._step_began = time.monotonic()
        self._times: dict[str, float] = {}
        self._sampled = sampler.state()
        """The sampler's state after the last finished step."""
        self._stale = int(state.extra.get("stale", 0))
        """Evaluations in a row that brought no better reward."""
        self._between_steps = True
        """Whether the weights are those of `state.step`."""

    # --- what an algorithm calls, in this order ---

    @property
    def max_staleness(self) -> int:
        """Steps that may lie between sampling a token and training on it."""
        return self.config.collection.max_staleness

    def steps(self) -> Iterator[int]:
        """Steps to do, from 0; ends early when the run is stopped or no longer gets better."""
        for step in range(self.state.step, self.config.steps):
            patience = self.config.eval.patience
            if patience is not None and self._stale >= patience:
                self.say(f"eval reward has not risen for {self._stale} evaluations: stopping early after step {step}")
                return
            if self._source is not None and self._ends:
                left = f"; left there: {self._source.account()}" if self._source.account() else ""
                self.say(f"nothing more to train in the store after step {step}{left}")
                return
            if self._stop.is_set():
                raise Stopped
            self._step_began = time.monotonic()
            self._times = {}
            yield step

    async def collect(self, step: int, group_size: int) -> list[Trajectory]:
        """The trajectories of a step: `group_size` rollouts of each of its tasks, as `collection` says, group by group; or as many that
        the source has."""
        if self._source is not None:
            return await self._find(step, self._source, group_size)
        if not self._ahead:
            # A resumed run starts with an empty prefix cache, and what is cached changes bits: every step starts with an empty one.
            await self.engine.load(self.engine.policy)
        self._progress.phase("rollouts")
        began = time.monotonic()
        trajectories, self._counts = await self._gatherer.next(step, group_size, lambda: self.trainer.policy.version)
        self._times["rollouts"] = time.monotonic() - began
        self._check_first(step, trajectories)
        return trajectories

    async def _find(self, step: int, source: ProductionReplay, group_size: int) -> list[Trajectory]:
        """What a deployed agent did, in place of rollouts."""
        self._progress.phase("reading the store")
        began = time.monotonic()
        found = await source.next(self.config.tasks_per_step, group_size)
        trajectories, self._counts = self._gatherer.fit(found)
        self._times["replay"] = time.monotonic() - began
        self._check_first(step, trajectories)
        return trajectories

    def _check_first(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        if step == self.state.step == 0:
            check_first(trajectories, self.config.agents, see=self._folder.path)
            notes = Counter(note for each in trajectories for note in each.diagnostics)
            for note, count in notes.most_common(5):
                log.warning("%s (%d times in the first step)", note, count)

    def say(self, text: str) -> None:
        """Something that a person should know."""
        self._progress.message(text)

    async def values(self, batch: Batch) -> NDArray[np.float64]:
        """(tokens,) what the trainer's critic expects of the return before each sampled token; NaN on context."""
        self._progress.phase("training")
        return await self.trainer.values(batch)

    async def update(self, batch: Batch, loss: LossSettings) -> dict[str, float]:
        """Train on a batch and serve what came of it; the trainer's metrics."""
        self._progress.phase("training")
        began = time.monotonic()
        if not self._ahead:
            await self.engine.pause()
        self._between_steps = False
        try:
            before = self.trainer.policy
            policy, metrics = await self.trainer.step(batch, loss)
            if policy != before:
                await self.store.publish(policy)
            metrics |= await self._handover.serve(policy)
        except NonFinite:
            self._between_steps = True  # the trainer left the weights as they were
            raise
        finally:
            if not self._ahead:
                await self.engine.resume()
        if self.engine.policy.version != policy.version:
            raise EngineError(
                f"the engine serves version {self.engine.policy.version} after version {policy.version} was trained and loaded; "
                "its samples would not be the trained policy's"
            )
        self._times["training"] = time.monotonic() - began
        return {**metrics, "policy_version": float(policy.version)}

    async def finish_step(
        self,
        step: int,
        trajectories: Sequence[Trajectory],
        returns: Sequence[Any],
        advantages: Sequence[Any],
        batch: Batch,
        metrics: dict[str, float],
    ) -> None:
        """Write down a step: metrics, what each rollout contributed, eval reward and checkpoint where they are due."""
        done = step + 1
        row: dict[str, Any] = {"step": done, **summary(trajectories, batch), **self._counts, **metrics}
        row.pop("tokens_per_second", None)  # the trainer's, of training: here the name stands for sampling
        sampling = time.monotonic() - self._step_began if self._ahead else self._times.get("rollouts")
        if sampling and row["sampled_tokens"]:
            row["tokens_per_second"] = row["sampled_tokens"] / sampling
        self._teach(trajectories)
        self._alarm(row)
        self._say(row, trajectories, batch)
        self._folder.write_batch(done, learned(trajectories, returns, advantages, batch))
        if self._source is not None:
            row |= self._source.counts()
        row |= {f"seconds.{name}": seconds for name, seconds in self._times.items()}
        row["seconds"] = time.monotonic() - self._step_began
        self._advance(done, row)
        self._ends = self._source is not None and not await self._source.more()
        await self._measure_and_log(row)
        keep = self.config.checkpoints
        if self._is_last(done) or (keep.best and self.state.best_step == done) or (keep.every and done % keep.every == 0):
            await self.checkpoint()

    async def abandon(self) -> None:
        """Cancel the groups that run ahead of the last step."""
        await self._collector.cancel()

    # --- evaluation, checkpoints ---

    async def begin(self) -> None:
        """Measure what is still to be measured: the eval reward before the first step, or that of a step at which the run was
        stopped."""
        self._ends = self._source is not None and not await self._source.more()
        row: dict[str, Any] | None = self.state.extra.get("row")
        if row is None and self.state.step == 0:
            row = {"step": 0}
        if row is None or (row["step"] == 0 and not self._val_tasks):
            return
        self._step_began = time.monotonic()
        await self._measure_and_log(row)

    async def _measure_and_log(self, row: dict[str, Any]) -> None:
        """Evaluate where it is due, then log the step. Stopped before its end, the row waits in the run's state."""
        done, every = row["step"], self.config.eval.every
        if self._val_tasks and (done == 0 or self._is_last(done) or (every and done % every == 0)):
            row |= await self.evaluate(done)
            row["seconds.evaluation"] = self._times["evaluation"]
            row["seconds"] = row.get("seconds", 0.0) + self._times["evaluation"]
            self._judge(row)
        self._tracker.log(row)
        self._progress.step(row)
        registry().hook.step_finished(metrics=row)
        self._keep_state({})

    async def evaluate(self, step: int) -> dict[str, float]:
        """Mean reward on the eval tasks with the weights as they are, sampled and greedy."""
        self._progress.phase("evaluating")
        began = time.monotonic()
        if not self._ahead:
            await self.engine.load(self.engine.policy)  # as in `collect`
        trajectories = await self._collector.run(evaluation_rollouts(self.config, self._val_tasks, step))
        if step == 0:
            check_first(trajectories, self.config.agents, see=self._folder.path)
        self._times["evaluation"] = time.monotonic() - began
        return eval_metrics(trajectories)

    async def checkpoint(self) -> None:
        """Keep the state after the last finished step, unless it is kept already."""
        if self.state.step in self._folder.steps():
            return
        self._progress.phase("writing checkpoint")
        with self._folder.new_checkpoint(self.state) as path:
            await self.trainer.save(path)
        keep = self.config.checkpoints
        self._folder.prune(best=self.state.best_step if keep.best else None, every=keep.keep_every, last=keep.last)

    async def rescue(self) -> None:
        """Keep what is finished when something ended the run. In the middle of an optimiser step nothing is written: the run goes on
        from the checkpoint before it."""
        if self._between_steps and self.state.step > 0:
            await self.checkpoint()

    # --- inside ---

    def _is_last(self, done: int) -> bool:
        return done == self.config.steps or self._ends

    def _teach(self, trajectories: Sequence[Trajectory]) -> None:
        """Tell a curriculum what came of its tasks."""
        learn = getattr(self._sampler, "learn", None)
        groups: dict[tuple[str, str], list[float]] = {}
        for each in trajectories:
            if each.reward is not None:
                groups.setdefault((each.task.id, each.group), []).append(each.reward)
        if learn is not None:
            for (task_id, _), rewards in groups.items():
                learn(task_id, rewards)

    def _advance(self, done: int, row: dict[str, Any]) -> None:
        """The weights are those after `done` steps; its row is not logged yet."""
        self._sampled = self._sampler.state()
        self.state = replace(self.state, step=done)
        self._keep_state({"row": row})
        self._between_steps = True

    def _judge(self, row: dict[str, Any]) -> None:
        """Whether a measured step is the best one so far."""
        reward = row.get("eval.sampled", row.get("eval.greedy"))
        if reward is None:
            return
        if self.state.best is None or reward > self.state.best:
            self.state, self._stale = replace(self.state, best=reward, best_step=row["step"]), 0
        else:
            self._stale += 1

    def _keep_state(self, extra: dict[str, Any]) -> None:
        self.state = replace(
            self.state,
            sampler=self._sampled,
            seconds=time.monotonic() - self._began,
            finished=self.state.step == self.config.steps and "row" not in extra,
            extra={**extra, "stale": self._stale, **({"pending": pending} if (pending := self._gatherer.pending) else {})},
        )
        self._folder.write_state(self.state)

    def _say(self, row: dict[str, Any], trajectories: Sequence[Trajectory], batch: Batch) -> None:
        """What a person should know of a step besides its numbers."""
        if row["failed"]:
            first = next(each for each in trajectories if each.status != "succeeded")
            why = f"the first one {first.status}: {first.error}"
            self.say(f"step {row['step']}: {row['failed']} of {row['rollouts']} rollouts did not succeed; {why}")
        if not row["trained_tokens"]:
            why = Counter(each.reason for each in batch.untrained).most_common(1)
            quiet = not why or why[0][0] == ZERO_VARIANCE
            said = "in no group did the rewards differ" if quiet else f"of most tokens: {why[0][0]}"
            self.say(f"step {row['step']}: nothing was trained, for {said}")
        if row["step"] == 1 and row.get("off_policy_abs", 0.0) > self.config.mismatch_alarm:
            self.say(
                f"step 1: another policy than the one that is trained sampled these replies: {row['off_policy_abs']:.4f} per token lie "
                "between their log-probabilities. A loss with a correction takes it into account"
            )

    def _alarm(self, row: dict[str, Any]) -> None:
        difference, limit = row.get("mismatch_abs"), self.config.mismatch_alarm
        if difference is not None and difference > limit:
            row["alarm"] = "mismatch_abs"
            self.say(
                f"ALARM, step {row['step']}: engine and trainer differ by {difference:.4f} in log-probability per token (limit {limit:g}); "
                "what is trained is not what was sampled. Check model, dtype, and that the engine serves the last version"
            )


def check_first(trajectories: Sequence[Trajectory], agents: Sequence[str] | None, *, see: Path | None = None) -> None:
    """What would make a whole run pointless is an error after its first rollouts, with the likely cause."""
    failed = [each for each in trajectories if each.status != "succeeded" and each.reward is None]
    if len(failed) == len(trajectories):
        raise AgentError(
            f"all {len(failed)} rollouts of the first step failed, so there is nothing to learn from; the first one: "
            f"{failed[0].error or failed[0].status}." + (f" See `agl show {see}`" if see else "")
        )
    if not any(each.reward is not None for each in trajectories):
        raise AgentError("no rollout of the first step was scored; return the reward from the agent function, or call agl.reward(value)")
    if not any(sum(each.calls.values()) for each in trajectories):
        check_joins(trajectories, agents)  # says more, where a framework saw calls
        raise JoinError(
            "no model call of the first step reached the gateway, so there is nothing to train; give the agent's model "
            "base_url=llm.base_url and api_key=llm.api_key, or install its framework's adapter (adapters = [...]); a command reads "
            "OPENAI_BASE_URL and OPENAI_API_KEY"
        )
    check_joins(trajectories, agents)
