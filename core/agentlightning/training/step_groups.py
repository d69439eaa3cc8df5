"""Groups of rollouts for each step: how many run ahead, which are filtered and resampled, and which of their tokens are stale.

Every group that starts is used in exactly one step, or cancelled. A filtered group is used as well, with the reason on its transitions, so
every sampled token is counted. With `max_staleness = 0` the groups of a step start after the step before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from agentlightning.config.parts import Part, call, named
from agentlightning.config.samplers import Sampler
from agentlightning.config.schema import CollectionConfig
from agentlightning.errors import ConfigError
from agentlightning.rl.trajectory.build import leave_out
from agentlightning.training.services import Services
from agentlightning.training.step_source import Counts, StepSource, excluded_tokens
from agentlightning.types import JSON, Task, Trajectory, Transition

FILTERED = "its group was filtered (collection.filter)"
STALE = "sampled by a policy that is older than collection.max_staleness"


@dataclass(frozen=True, slots=True)
class StartedGroup:
    """A group whose rollouts were queued."""

    task: Task
    step: int
    """The step that started it, from 0."""
    place: int
    """Position among the groups that this step started."""
    repeat: int
    """How many groups of the same task this step started before it."""

    @property
    def name(self) -> str:
        return f"train-{self.step}-{self.place}"

    def to_json(self) -> JSON:
        return {"task": self.task.id, "step": self.step, "place": self.place, "repeat": self.repeat}


class StepGroups(StepSource):
    """The step source of a run whose runners do the rollouts."""

    name = "rollouts"
    phase = "rollouts"
    samples = True

    def __init__(self, services: Services, settings: CollectionConfig, sampler: Sampler, *, tasks_per_step: int, steps: int) -> None:
        """`steps`: of the run, so that no group starts for a step beyond the last."""
        self.store, self._collector, self._rollouts, self._version_of = (
            services.store,
            services.collector,
            services.rollouts,
            services.version_of,
        )
        self._settings, self._sampler = settings, sampler
        self._tasks_per_step, self._steps = tasks_per_step, steps
        self._filter = None if settings.filter is None else Part.parse("filters", settings.filter, "collection.filter").make()
        self._resumed: list[StartedGroup] = []
        """Groups of a stopped run or of a step that starts again. They start first."""
        self._running: dict[str, StartedGroup] = {}
        self._used: list[StartedGroup] = []
        """Groups of the last step."""
        self._step, self._places = -1, 0
        self._repeats: Counter[str] = Counter()
        """Groups that the step has started, by task id."""

    def resume(self, pending: Sequence[Mapping[str, Any]], tasks: Sequence[Task]) -> None:
        """Start the groups again that `pending` returned before the run was stopped, except those whose task is gone."""
        by_id = {task.id: task for task in tasks}
        self._resumed = [
            StartedGroup(by_id[group["task"]], group["step"], group["place"], group["repeat"])
            for group in pending
            if group["task"] in by_id
        ]

    def pending(self) -> list[JSON]:
        return [group.to_json() for group in (*self._running.values(), *self._resumed)]

    def state(self) -> JSON:
        return self._sampler.state()

    def learn(self, trajectories: Sequence[Trajectory]) -> None:
        """Tell the sampler the rewards of its tasks, group by group."""
        rewards: dict[tuple[str, str], list[float]] = {}
        for trajectory in trajectories:
            scored = [] if trajectory.reward is None else [trajectory.reward]
            rewards.setdefault((trajectory.task.id, trajectory.group), []).extend(scored)
        self._sampler.learn([(task_id, group_rewards) for (task_id, _), group_rewards in rewards.items()])

    async def next(self, step: int, group_size: int) -> tuple[list[Trajectory], Counts]:
        ahead = min(self._settings.max_staleness, self._steps - step - 1) * self._tasks_per_step
        missing, resamples = self._tasks_per_step, 0
        groups: list[tuple[StartedGroup, list[Trajectory], bool]] = []
        while missing:
            await self._start(step, missing + ahead - len(self._running), group_size)
            name, trajectories = await self._collector.next_group()
            kept = self._keeps(trajectories)
            groups.append((self._running.pop(name), trajectories, kept))
            if not kept and resamples < self._settings.resample:
                resamples += 1
            else:
                missing -= 1
        groups.sort(key=lambda group: (group[0].step, group[0].place))
        self._used = [group for group, *_ in groups]
        marked = [self._mark(trajectory, kept) for _, group, kept in groups for trajectory in group]
        counts: Counts = {}
        if self._filter is not None:
            counts["groups_filtered"] = float(sum(not kept for *_, kept in groups))
            counts["groups_resampled"] = float(resamples)
        if self._settings.max_staleness:
            counts["stale_tokens"] = excluded_tokens(marked, STALE)
        return marked, counts

    async def again(self) -> None:
        await self._collector.discard()
        self._resumed = [*self._used, *self._running.values(), *self._resumed]
        self._used, self._running = [], {}

    def _keeps(self, group: Sequence[Trajectory]) -> bool:
        """Return whether a step trains on a group, by `collection.filter`."""
        if self._filter is None:
            return True
        keep: Any = call("collection.filter", self._settings.filter, self._filter, group)
        if not isinstance(keep, bool | np.bool_):
            raise ConfigError(
                f"collection.filter {named(self._settings.filter)} returned {keep!r:.80}. Return True to train on the group, or False."
            )
        return bool(cast(Any, keep))

    def _mark(self, trajectory: Trajectory, kept: bool) -> Trajectory:
        """Mark the replies that the policies as they are now do not train on."""

        def reason(transition: Transition) -> str | None:
            if not kept:
                return FILTERED
            versions, version = transition.versions[transition.versions >= 0], self._version_of(transition.policy)
            if version is None:  # a frozen policy: nothing trains on it
                return None
            return STALE if len(versions) and version - int(versions.min()) > self._settings.max_staleness else None

        return leave_out(trajectory, reason)

    async def _start(self, step: int, count: int, group_size: int) -> None:
        """Start so many groups: first those that start again, then new ones."""
        if count < 1:
            return
        if step != self._step:
            self._step, self._places, self._repeats = step, 0, Counter[str]()
        groups, self._resumed = self._resumed[:count], self._resumed[count:]
        for task in self._sampler.next(count - len(groups)) if count > len(groups) else []:
            groups.append(StartedGroup(task, step, self._places, self._repeats[task.id]))
            self._places += 1
            self._repeats[task.id] += 1
        self._running |= {group.name: group for group in groups}
        rollouts = [
            self._rollouts.repeated(group.repeat).rollout(group.task, "train", group.name, index, group.step)
            for group in groups
            for index in range(group_size)
        ]
        await self._collector.start(rollouts)
