"""Queues rollouts for the runners, and returns their trajectories group by group."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from agentlightning.contracts.store import LightningStore, RolloutState
from agentlightning.errors import AgentError
from agentlightning.training.controls import Controls
from agentlightning.training.rewards.scoring import Scoring
from agentlightning.training.rollouts import ReadTrajectory, mean_reward
from agentlightning.types import Rollout, Trajectory


@dataclass(slots=True)
class Group:
    """Rollouts that were queued together."""

    ids: list[str] = field(default_factory=list[str])
    """In the order of their start."""
    trajectories: dict[str, Trajectory] = field(default_factory=dict[str, Trajectory])
    """Of the rollouts that have ended, by rollout id."""
    running: set[str] = field(default_factory=set[str])

    @property
    def ended(self) -> bool:
        return len(self.trajectories) == len(self.ids)


class Collector:
    """Queues groups of rollouts in a store and waits for the runners. Ctrl-C, or the end of the runners, ends the wait."""

    def __init__(
        self,
        store: LightningStore,
        runners: asyncio.Task[None],
        read: ReadTrajectory,
        controls: Controls,
        scoring: Scoring | None = None,
    ) -> None:
        """`scoring`: scores each group whose rollouts have ended; None: the agent gives the rewards."""
        self._store, self._runners, self._read, self._controls = store, runners, read, controls
        self._scoring = scoring
        self._scored: set[asyncio.Task[None]] = set()
        """Groups that are being scored, and failures that nobody has seen so far."""
        self._cursor: int | None = None
        self._groups: dict[str, Group] = {}
        """The groups that were not returned yet, by name."""
        self._group_of: dict[str, str] = {}
        """The group's name, by rollout id."""
        self._ended: list[str] = []
        """Names of the groups whose rollouts have all ended and are scored, in that order."""

    async def start(self, rollouts: Sequence[Rollout]) -> None:
        """Queue complete groups of rollouts."""
        if self._cursor is None:
            self._cursor = await self._store.wait(0, timeout=0)
        for rollout in rollouts:
            name = rollout.group or rollout.id
            self._groups.setdefault(name, Group()).ids.append(rollout.id)
            self._group_of[rollout.id] = name
        await self._store.add(rollouts)

    async def next_group(self) -> tuple[str, list[Trajectory]]:
        """Return the name and trajectories of the group that ended first. Cancels all rollouts when the wait fails.

        Raises `Stopped`, or the error that ended the runners.
        """
        while not self._ended:
            await self._follow()
        name = self._ended[0]
        return name, self._take(name)

    async def run(self, rollouts: Sequence[Rollout]) -> list[Trajectory]:
        """Queue rollouts and return their trajectories, in order, when all have ended. Groups that started earlier continue meanwhile."""
        await self.start(rollouts)
        names = list(dict.fromkeys(self._group_of[rollout.id] for rollout in rollouts))
        while not set(names) <= set(self._ended):
            await self._follow()
        by_id = {trajectory.rollout_id: trajectory for name in names for trajectory in self._take(name)}
        return [by_id[rollout.id] for rollout in rollouts]

    async def cancel(self) -> None:
        """Cancel every rollout that has not ended, and the scoring of the others."""
        for task in self._scored:
            task.cancel()
        await asyncio.gather(*self._scored, return_exceptions=True)
        self._scored.clear()
        await self._store.cancel(
            [rollout_id for group in self._groups.values() for rollout_id in group.ids if rollout_id not in group.trajectories]
        )

    async def discard(self) -> None:
        """Cancel every rollout that has not ended, and forget all groups that were not returned."""
        await self.cancel()
        self._groups, self._group_of, self._ended = {}, {}, []

    def _take(self, name: str) -> list[Trajectory]:
        self._ended.remove(name)
        group = self._groups.pop(name)
        for rollout_id in group.ids:
            del self._group_of[rollout_id]
        return [group.trajectories[rollout_id] for rollout_id in group.ids]

    async def _follow(self) -> None:
        """Read the changes in the store; wait if there are none."""
        try:
            for task in [task for task in self._scored if task.done()]:
                self._scored.discard(task)
                task.result()
            states, self._cursor = await self._store.list(after=self._cursor or 0, order="changed", limit=1000)
            ended = len(self._ended)
            for state in states:
                await self._update(state)
            self._report()
            if not states and len(self._ended) == ended:
                await self._controls.wait(self._store.wait(self._cursor, timeout=10), self._runners, *self._scored)
                if self._runners.done():
                    self._runners.result()  # its error, if it came after the wait
                    raise AgentError("The runners ended while rollouts were queued. See the log for the cause, then resume the run.")
        except BaseException:
            await self.cancel()
            raise

    async def _update(self, state: RolloutState) -> None:
        rollout_id = state.rollout.id
        name = self._group_of.get(rollout_id)
        if name is None or rollout_id in self._groups[name].trajectories:
            return
        group = self._groups[name]
        (group.running.add if state.status == "running" else group.running.discard)(rollout_id)
        if state.status in ("succeeded", "failed", "cancelled"):
            state, records = await self._store.read(rollout_id)
            group.trajectories[rollout_id] = self._read(state, records)
            if group.ended and self._scoring is None:
                self._ended.append(name)
            elif group.ended and self._scoring is not None:
                self._scored.add(asyncio.create_task(self._score(name, group, self._scoring)))

    async def _score(self, name: str, group: Group, scoring: Scoring) -> None:
        """Score the rollouts of a group that has ended, and read them again with their rewards."""
        unscored = await scoring.score([await self._store.read(rollout_id) for rollout_id in group.ids])
        for rollout_id in group.ids:
            trajectory = self._read(*await self._store.read(rollout_id))
            reason = unscored.get(rollout_id)
            if reason is not None and trajectory.reward is None:
                trajectory = replace(trajectory, error=reason, diagnostics=(f"not scored: {reason}", *trajectory.diagnostics))
            group.trajectories[rollout_id] = trajectory
        self._ended.append(name)

    def _report(self) -> None:
        groups = self._groups.values()
        trajectories = [trajectory for group in groups for trajectory in group.trajectories.values()]
        tokens = sum(len(transition.response_ids) for trajectory in trajectories for transition in trajectory.transitions)
        running = sum(len(group.running) for group in groups)
        self._controls.progress.rollouts(len(trajectories), len(self._group_of), running, mean_reward(trajectories), tokens)
