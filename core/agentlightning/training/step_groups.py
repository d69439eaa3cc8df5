"""Which groups of rollouts make up a step: how many run ahead of it, which are filtered and replaced, what in them is not trained.

Every group that was started is handed out in exactly one step, or cancelled; one that is filtered is handed out as well, with the reason
at its transitions, so that nothing sampled goes uncounted. With `max_staleness = 0` a step's groups begin after the step before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from agentlightning.config.parts import Part, call, named
from agentlightning.config.schema import Config
from agentlightning.config.tasks import Sampler
from agentlightning.errors import ConfigError
from agentlightning.rl.trajectory.build import leave_out
from agentlightning.training.collector import Collector
from agentlightning.training.evaluation import new_rollout
from agentlightning.types import JSON, Task, Trajectory, Transition

Counts = dict[str, float]
REPEAT = 1 << 40
"""Between the seeds of a task that comes several times in one step."""


@dataclass(frozen=True, slots=True)
class Started:
    """A group under way."""

    task: str
    """Its id."""
    step: int
    """Before which it was started, from 0."""
    place: int
    """Among the groups that were started then."""
    repeat: int
    """How many groups of the same task were started then before it."""

    @property
    def name(self) -> str:
        return f"train-{self.step}-{self.place}"


class Gatherer:
    """One for each run."""

    def __init__(
        self, config: Config, collector: Collector, sampler: Sampler, tasks: Mapping[str, Task], *, longest: int | None, left: JSON = ()
    ) -> None:
        """`longest`: tokens of the longest path that the trainer takes; None: any. `left` is what `pending` gave before a run was stopped:
        those groups are started first."""
        self._config, self._collector, self._sampler, self._tasks = config, collector, sampler, dict(tasks)
        self._longest = longest
        keep = config.collection.filter
        self._keep = None if keep is None else Part.parse("filters", keep, "collection.filter").make()
        self._left = [Started(**each) for each in left]
        self._running: dict[str, Started] = {}
        self._step, self._places = -1, 0
        self._seen: Counter[str] = Counter()

    @property
    def pending(self) -> list[JSON]:
        """The groups that were started and not handed out yet, as JSON."""
        return [asdict(each) for each in (*self._running.values(), *self._left)]

    async def next(self, step: int, group_size: int, version: Callable[[], int]) -> tuple[list[Trajectory], Counts]:
        """The trajectories of a step, group by group in the order of their start, and what is counted of them. `version`: of the policy
        that the step will train."""
        settings = self._config.collection
        need, resamples = self._config.tasks_per_step, settings.resample
        ahead = min(settings.max_staleness, self._config.steps - step - 1) * self._config.tasks_per_step
        taken: list[tuple[Started, list[Trajectory], bool]] = []
        while need:
            await self._start(step, need + ahead - len(self._running), group_size)
            name, found = await self._collector.ended()
            kept = self._keep is None or self._kept(found)
            taken.append((self._running.pop(name), found, kept))
            if not kept and resamples:
                resamples -= 1
            else:
                need -= 1
        taken.sort(key=lambda each: (each[0].step, each[0].place))
        counts: Counts = {}
        if self._keep is not None:
            counts["groups_filtered"] = float(sum(not kept for _, _, kept in taken))
            counts["groups_resampled"] = float(settings.resample - resamples)
        now = version()
        marked = [
            leave_out(each, lambda transition, kept=kept: self._why(transition, kept, now)) for _, found, kept in taken for each in found
        ]
        if settings.max_staleness:
            counts["stale_tokens"] = _tokens(marked, STALE)
        trajectories, dropped = self.fit(marked)
        return trajectories, counts | dropped

    def _kept(self, group: Sequence[Trajectory]) -> bool:
        part = self._config.collection.filter
        kept: Any = call("collection.filter", part, cast("Callable[..., Any]", self._keep), group)
        kept = cast("Any", kept).item() if isinstance(kept, np.generic) else kept
        if not isinstance(kept, bool):
            raise ConfigError(f"collection.filter {named(part)} gave {kept!r:.80}; expected True or False")
        return kept

    def fit(self, trajectories: Sequence[Trajectory]) -> tuple[list[Trajectory], Counts]:
        """The trajectories without replies that are cut off, or too long for the trainer, where `collection` says so; and their tokens."""
        found = [leave_out(each, self._unfit) for each in trajectories]
        settings, counts = self._config.collection, Counts()
        if settings.truncated == "drop":
            counts["truncated_tokens_dropped"] = _tokens(found, TRUNCATED)
        if settings.overlong == "drop":
            counts["overlong_tokens_dropped"] = _tokens(found, OVERLONG)
        return found, counts

    async def _start(self, step: int, count: int, group_size: int) -> None:
        if count < 1:
            return
        if step != self._step:
            self._step, self._places, self._seen = step, 0, Counter[str]()
        again, self._left = self._left[:count], self._left[count:]
        groups = [each for each in again if each.task in self._tasks]
        fresh = self._sampler.next(count - len(groups)) if count > len(groups) else []
        for task in fresh:
            self._tasks.setdefault(task.id, task)
            groups.append(Started(task.id, step, self._places, self._seen[task.id]))
            self._places += 1
            self._seen[task.id] += 1
        self._running |= {each.name: each for each in groups}
        await self._collector.start(
            [
                new_rollout(
                    self._config,
                    self._tasks[each.task],
                    "train",
                    each.name,
                    index,
                    each.step,
                    seed=self._config.seed + each.repeat * REPEAT,
                )
                for each in groups
                for index in range(group_size)
            ]
        )

    def _why(self, transition: Transition, kept: bool, version: int) -> str | None:
        """Why a reply of a group is not trained by a policy of a version; None: it is."""
        if not kept:
            return FILTERED
        known = transition.versions[transition.versions >= 0]
        return STALE if len(known) and version - int(known.min()) > self._config.collection.max_staleness else None

    def _unfit(self, transition: Transition) -> str | None:
        settings = self._config.collection
        if transition.truncated and settings.truncated == "drop":
            return TRUNCATED
        length = len(transition.prompt_ids) + len(transition.response_ids)
        return OVERLONG if settings.overlong == "drop" and self._longest is not None and length > self._longest else None


def _tokens(trajectories: Sequence[Trajectory], reason: str) -> float:
    """Sampled tokens that are not trained for a reason."""
    return float(sum(len(t.response_ids) for each in trajectories for t in each.transitions if t.reason == reason))


FILTERED = "its group was filtered (collection.filter)"
STALE = "sampled by a policy that is older than collection.max_staleness"
TRUNCATED = "cut off by its limit of tokens (collection.truncated = 'drop')"
OVERLONG = "longer than the trainer takes (collection.overlong = 'drop')"
