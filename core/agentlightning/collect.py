"""Has runners do rollouts, and reads back what came of them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from agentlightning.errors import AgentError
from agentlightning.model import Rollout, Trajectory
from agentlightning.progress import Progress
from agentlightning.rl.trajectory import trajectory
from agentlightning.store import LightningStore, RolloutState


class Stopped(Exception):  # it is no error: somebody asked
    """The run was asked to stop."""


class Collector:
    """Queues rollouts in a store and waits for the runners; a stop, or the end of the runners, ends the wait."""

    def __init__(
        self,
        store: LightningStore,
        runners: asyncio.Task[None],
        stop: asyncio.Event,
        progress: Progress,
        *,
        agents: Sequence[str] | None = None,
        reward_weights: Mapping[str, float] | None = None,
    ) -> None:
        self._store, self._runners, self._stop, self._progress = store, runners, stop, progress
        self._agents, self._reward_weights = agents, reward_weights

    async def run(self, rollouts: Sequence[Rollout]) -> list[Trajectory]:
        """The trajectories of these rollouts, in their order, when all have ended. Whatever ends this earlier cancels the rest.

        Raises `Stopped`, or what ended the runners.
        """
        cursor = await self._store.wait(0, timeout=0)
        await self._store.add(rollouts)
        done: dict[str, Trajectory] = {}
        wanted = {rollout.id for rollout in rollouts}
        running: set[str] = set()
        try:
            while len(done) < len(rollouts):
                states, cursor = await self._store.list(after=cursor, order="changed", limit=1000)
                for state in states:
                    rollout_id = state.rollout.id
                    if rollout_id not in wanted or rollout_id in done:
                        continue
                    (running.add if state.status == "running" else running.discard)(rollout_id)
                    if state.status in ("succeeded", "failed", "cancelled"):
                        done[rollout_id] = await self._read(state)
                self._show(done.values(), len(rollouts), len(running))
                if not states and len(done) < len(rollouts):
                    await self._change(cursor)
        except BaseException:
            await self._store.cancel([each for each in wanted if each not in done])
            raise
        return [done[rollout.id] for rollout in rollouts]

    async def _read(self, state: RolloutState) -> Trajectory:
        state, records = await self._store.read(state.rollout.id)
        return trajectory(state, records, agents=self._agents, reward_weights=self._reward_weights)

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

    def _show(self, done: Collection[Trajectory], total: int, running: int) -> None:
        rewards = [each.reward for each in done if each.reward is not None]
        tokens = sum(len(transition.response_ids) for each in done for transition in each.transitions)
        self._progress.rollouts(len(done), total, running, float(np.mean(rewards)) if rewards else None, tokens)
