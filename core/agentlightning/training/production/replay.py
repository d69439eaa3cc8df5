"""Replay: a step's trajectories from the store of a deployed agent, or of earlier runs.

A step can take a rollout once it has ended and is scored. The rollout that ended first comes first, and each is taken once: never again in
this run, nor in a run that starts from its weights, whatever rewards arrive later. The store is only read, and only as far as a step needs.
The rollouts of a step follow from the store and from the rollouts trained so far, so a resumed run does what an uninterrupted one would
have done, as long as the store stays the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from heapq import heappop, heappush

from msgspec.structs import replace

from agentlightning.contracts.store import RolloutState
from agentlightning.stores.common import ENDED
from agentlightning.training.controls import Controls
from agentlightning.training.production.reading import CONTRADICTED, ReplayReader, exclusion_reason, has_trained_tokens
from agentlightning.training.production.states import ReplayRollout, ReplayTable, State
from agentlightning.training.step_source import Counts, StepSource
from agentlightning.types import Mode, Trajectory


class ProductionReplay(StepSource):
    """The step source of a run on production rollouts."""

    name = "replay"
    phase = "reading the store"
    samples = False
    PAGE = 200
    """Rollouts listed at once."""
    SOONEST, AGE = 2.0, 0.1
    """The replay looks again for a missing reward after this part of the rollout's age, and at the soonest after so many seconds."""
    LONGEST_WAIT = 600.0
    """Seconds to wait for a change in the store at once."""

    def __init__(
        self,
        reader: ReplayReader,
        controls: Controls,
        *,
        compares: bool,
        tasks_per_step: int,
        mode: Mode = "production",
        wait: bool = False,
        trained: Collection[str] = (),
    ) -> None:
        """`compares`: the algorithm compares the rollouts of a task, so a step takes full groups. `mode`: of the rollouts. `trained`: ids
        of rollouts that were trained before."""
        self.store, self._reader, self._controls = reader.store, reader, controls
        self._compares, self._tasks_per_step, self._wait = compares, tasks_per_step, wait
        self._mode: Mode = mode
        self._table = ReplayTable(trained, compares=compares)
        self._cursor = 0
        self._page: deque[RolloutState] = deque()
        self._unscored: list[tuple[float, int, ReplayRollout]] = []
        """A heap of the UNSCORED rollouts: when to look for a reward again (on the monotonic clock), and `seq`."""

    async def next(self, step: int, group_size: int) -> tuple[list[Trajectory], Counts]:
        return await self.take(self._tasks_per_step, group_size), {}

    async def take(self, tasks: int, group_size: int) -> list[Trajectory]:
        """Return the trajectories of a step: `group_size` rollouts of each of `tasks` tasks, grouped by task. An algorithm that does
        not compare rollouts gets as many rollouts of any tasks.

        Without `wait` the last steps use the rest: smaller groups of two or more, fewer rollouts, in the end none.
        """
        count, size = (tasks, group_size) if self._compares else (tasks * group_size, 1)
        told = False
        while True:
            seq = await self.store.wait(0, timeout=0) if self._wait else 0
            if await self._fill(count, size):
                break
            pause = await self._look_again(time.monotonic())
            if self._table.groups(size) >= count or not self._wait:
                break
            self._tell(count, size, aloud=not told)
            told = True
            await self._controls.wait(self.store.wait(seq, timeout=min(pause, self.LONGEST_WAIT)))
        groups = self._table.take(count, size, full_only=self._wait)
        return [trajectory for group in groups for trajectory in await self._read(group)]

    async def more(self) -> bool:
        """Return whether another step has anything to train on; with `wait` always. Raises `Stopped`."""
        if self._wait or self._table.trainable():
            return True
        self._controls.progress.phase("reading the store")
        while (state := await self._following()) is not None:
            await self._add(state)
            if self._table.trainable(state.rollout.task.id):
                return True
        await self._look_again(float("inf"))
        return self._table.trainable()

    def counts(self) -> Counts:
        return self._table.counts()

    def account(self) -> str:
        return self._table.account()

    async def _fill(self, count: int, size: int) -> bool:
        """Read rollouts until `count` groups are full; False: the list ended before."""
        full = self._table.groups(size)
        while full < count:
            state = await self._following()
            if state is None:
                return False
            task = state.rollout.task.id
            full -= self._table.groups(size, task)
            await self._add(state)
            full += self._table.groups(size, task)
        return True

    async def _following(self) -> RolloutState | None:
        """Return the next rollout of the mode that has ended; None: there is none so far."""
        self._controls.check()
        if not self._page:
            states, self._cursor = await self.store.list(
                after=self._cursor, limit=self.PAGE, status=ENDED, mode=self._mode, order="changed"
            )
            self._page.extend(states)
        return self._page.popleft() if self._page else None

    async def _add(self, state: RolloutState) -> None:
        if state.rollout.id not in self._table:
            ended = max((attempt.finished or 0.0 for attempt in state.attempts), default=0.0)
            rollout = ReplayRollout(state.rollout.id, state.rollout.task.id, state.seq, ended)
            self._table.add(rollout)
            await self._assess(rollout)

    async def _look_again(self, now: float) -> float:
        """Read the unscored rollouts that are due again; return the seconds until the next one is due."""
        due: list[ReplayRollout] = []
        while self._unscored and self._unscored[0][0] <= now:
            due.append(heappop(self._unscored)[2])
        for rollout in due:
            self._controls.check()
            await self._assess(rollout)
        return max(0.0, self._unscored[0][0] - time.monotonic()) if self._unscored else float("inf")

    async def _assess(self, rollout: ReplayRollout) -> None:
        """Set the state of an unscored rollout."""
        now, age = time.monotonic(), time.time() - rollout.ended
        trajectory, same_tokenizer = await self._reader.read(rollout.id)
        if trajectory is None:
            self._table.settle(rollout, State.EXCLUDED, CONTRADICTED)
        elif trajectory.excluded is not None:
            self._table.settle(rollout, State.EXCLUDED, trajectory.excluded)
        elif trajectory.reward is None and trajectory.status == "succeeded":
            heappush(self._unscored, (now + max(age * self.AGE, self.SOONEST), rollout.seq, rollout))
        elif trajectory.reward is None:
            self._table.settle(rollout, State.EXCLUDED, f"that ended as {trajectory.status!r}")
        elif has_trained_tokens(trajectory):
            self._table.settle(rollout, State.READY)
        else:
            state = State.BASELINE if self._compares and same_tokenizer else State.EXCLUDED
            self._table.settle(rollout, state, exclusion_reason(trajectory))

    async def _read(self, group: list[ReplayRollout]) -> list[Trajectory]:
        """Read the rollouts of a task as one group."""
        trajectories: list[Trajectory] = []
        for rollout in group:
            trajectory, _ = await self._reader.read(rollout.id)
            if trajectory is None:  # another reward has arrived meanwhile
                self._table.settle(rollout, State.EXCLUDED, CONTRADICTED)
            else:
                trajectories.append(trajectory)
        return [replace(trajectory, group=trajectory.task.id, index=index) for index, trajectory in enumerate(trajectories)]

    def _tell(self, count: int, size: int, *, aloud: bool) -> None:
        """Tell the user how many rollouts the step still needs."""
        full, unscored = self._table.groups(size), len(self._unscored)
        self._controls.progress.phase("waiting for production")
        self._controls.progress.rollouts(full, count, unscored)
        if aloud:
            kind = f"groups of {size} rollouts" if self._compares else "rollouts"
            waiting = f"; {unscored:,} have no reward so far" if unscored else ""
            self._controls.progress.message(f"Waiting for production: {full:,} of {count:,} {kind} have ended and are scored{waiting}.")
