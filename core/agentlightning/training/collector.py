"""Has runners do rollouts, and reads back what came of them, group by group."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentlightning.contracts.store import LightningStore, RolloutState
from agentlightning.errors import AgentError
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.rl.trajectory.step_rewards import StepReward
from agentlightning.training.progress import Progress
from agentlightning.types import Rollout, Trajectory


class Stopped(Exception):  # it is no error: somebody asked
    """The run was asked to stop."""


class Collector:
    """Queues groups of rollouts in a store and waits for the runners; a stop, or the end of the runners, ends the wait."""

    def __init__(
        self,
        store: LightningStore,
        runners: asyncio.Task[None],
        stop: asyncio.Event,
        progress: Progress,
        *,
        agents: Sequence[str] | None = None,
        reward_weights: Mapping[str, float] | None = None,
        step_rewards: Sequence[StepReward] = (),
    ) -> None:
        self._store, self._runners, self._stop, self._progress = store, runners, stop, progress
        self._reading: dict[str, Any] = {"agents": agents, "reward_weights": reward_weights, "step_rewards": step_rewards}
        """Arguments of `trajectory`."""
        self._cursor: int | None = None
        self._groups: dict[str, list[str]] = {}
        """Ids of the rollouts of every group that was not handed out yet, in the order of their start."""
        self._group_of: dict[str, str] = {}
        self._running: set[str] = set()
        self._done: dict[str, Trajectory] = {}
        self._whole: list[str] = []
        """Groups of which every rollout has ended, in the order in which they did."""

    async def start(self, rollouts: Sequence[Rollout]) -> None:
        """Queue rollouts, whole groups of them."""
        if self._cursor is None:
            self._cursor = await self._store.wait(0, timeout=0)
        for rollout in rollouts:
            group = rollout.group or rollout.id
            self._groups.setdefault(group, []).append(rollout.id)
            self._group_of[rollout.id] = group
        await self._store.add(rollouts)

    async def ended(self) -> tuple[str, list[Trajectory]]:
        """The group that ended first of those not handed out yet, with its trajectories in their order. Whatever ends the wait earlier
        cancels everything under way. Raises `Stopped`, or what ended the runners."""
        while not self._whole:
            await self._look()
        return self._take(self._whole[0])

    async def run(self, rollouts: Sequence[Rollout]) -> list[Trajectory]:
        """The trajectories of these rollouts, in their order, when all have ended; groups that were started before go on beside them."""
        await self.start(rollouts)
        wanted = list(dict.fromkeys(self._group_of[each.id] for each in rollouts))
        while not set(wanted) <= set(self._whole):
            await self._look()
        found = {each.rollout_id: each for group in wanted for each in self._take(group)[1]}
        return [found[rollout.id] for rollout in rollouts]

    def _take(self, group: str) -> tuple[str, list[Trajectory]]:
        self._whole.remove(group)
        ids = self._groups.pop(group)
        for each in ids:
            del self._group_of[each]
        return group, [self._done.pop(each) for each in ids]

    async def _look(self) -> None:
        """Take in what has changed; wait where nothing has."""
        try:
            states, self._cursor = await self._store.list(after=self._cursor or 0, order="changed", limit=1000)
            whole = len(self._whole)
            for state in states:
                await self._take_in(state)
            total, rewards = len(self._group_of), [t.reward for t in self._done.values() if t.reward is not None]
            tokens = sum(len(transition.response_ids) for each in self._done.values() for transition in each.transitions)
            self._progress.rollouts(len(self._done), total, len(self._running), float(np.mean(rewards)) if rewards else None, tokens)
            if not states and len(self._whole) == whole:
                await self._change(self._cursor)
        except BaseException:
            await self.cancel()
            raise

    async def cancel(self) -> None:
        """Cancel everything under way."""
        await self._store.cancel([each for each in self._group_of if each not in self._done])

    async def _take_in(self, state: RolloutState) -> None:
        rollout_id = state.rollout.id
        group = self._group_of.get(rollout_id)
        if group is None or rollout_id in self._done:
            return
        (self._running.add if state.status == "running" else self._running.discard)(rollout_id)
        if state.status in ("succeeded", "failed", "cancelled"):
            state, records = await self._store.read(rollout_id)
            self._done[rollout_id] = trajectory(state, records, **self._reading)
            if all(each in self._done for each in self._groups[group]):
                self._whole.append(group)

    async def _change(self, cursor: int) -> None:
        change = asyncio.create_task(self._store.wait(cursor, timeout=10))
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([change, stop, self._runners], return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                raise Stopped
            if self._runners.done():
                self._runners.result()
                raise AgentError("the runners ended while rollouts were waiting for them")
        finally:
            change.cancel()
            stop.cancel()
            await asyncio.gather(change, stop, return_exceptions=True)
