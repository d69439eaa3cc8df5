"""Several policies in one run: an algorithm for each of them, in lockstep over the same rollouts.

Each algorithm sees a session of its own. Its trajectories have the replies of all policies, and those of other policies are not trained. So
credit sees every turn, baselines compare whole rollouts, and each policy trains on its own tokens alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from agentlightning.algorithms import base
from agentlightning.algorithms.base import Algorithm, PromptTrials
from agentlightning.algorithms.prompt_search import PromptSearch
from agentlightning.config.parts import Part
from agentlightning.config.policies import PolicyConfig, with_own
from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.errors import ConfigError, PluginError
from agentlightning.gateway.rendering.demonstration import Demonstrate
from agentlightning.rl.marks import Needs
from agentlightning.rl.trajectory.build import leave_out
from agentlightning.training.lesson import Lesson
from agentlightning.types import JSON, Doubles, Trajectory, Transition


class Run(Protocol):
    """The run that the policies share."""

    @property
    def max_staleness(self) -> int: ...
    @property
    def trials(self) -> PromptTrials: ...
    def say(self, text: str) -> None: ...
    def steps(self) -> Iterator[int]: ...
    async def collect(self, step: int, group_size: int) -> list[Trajectory]: ...
    async def values(self, batch: Batch, policy: str | None = None) -> Doubles: ...
    async def teacher_logprobs(self, batch: Batch) -> Doubles: ...
    async def update(self, batch: Batch, loss: LossSettings, policy: str | None = None) -> dict[str, float]: ...
    async def finish(self, step: int, trajectories: Sequence[Trajectory], lessons: Sequence[Lesson]) -> None: ...


def chosen_algorithm(shared: Mapping[str, JSON], policies: Mapping[str, PolicyConfig]) -> Algorithm:
    """Return the algorithm of the table `[algorithm]`: for several policies, one for each of them."""
    if not policies:
        return Part.parse("algorithms", shared, "algorithm").make()
    trained = {name: policy for name, policy in policies.items() if policy.train}
    tables = {name: with_own(shared, policy.algorithm) for name, policy in trained.items()}
    wheres = {name: f"policies.{name}.algorithm" if trained[name].algorithm else "algorithm" for name in trained}
    algorithms = {name: Part.parse("algorithms", table, wheres[name]).make() for name, table in tables.items()}
    for name, algorithm in algorithms.items():
        if not algorithm.trains_weights:
            raise ConfigError(f"policies.{name} would learn by algorithm {algorithm.name!r}, which trains no weights. Remove policies.")
    sizes = {name: algorithm.group_size for name, algorithm in algorithms.items()}
    if len(set(sizes.values())) > 1:
        raise ConfigError(f"The policies differ in algorithm.group_size ({_listed(sizes)}), but they share their rollouts. Use one number.")
    demonstrated = {name: algorithm.trains_demonstrations or (algorithm.answered_steps or 0) for name, algorithm in algorithms.items()}
    if len(set(demonstrated.values())) > 1:
        raise ConfigError(
            f"Some policies learn from demonstrations ({_listed(demonstrated)}), and demonstrations answer every call of a rollout. Use "
            "algorithm 'sft' for all policies, or for none."
        )
    return JointAlgorithm(algorithms)


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())


@dataclass(frozen=True)
class JointAlgorithm(Algorithm):
    """The algorithms of several policies."""

    policies: Mapping[str, Any] = field(default_factory=dict[str, Algorithm])
    """The algorithm of each trained policy."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "group_size", self._any().group_size)

    def _any(self) -> Algorithm:
        return next(iter(self.policies.values()))

    @property
    def needs(self) -> Needs:
        first, *others = (algorithm.needs for algorithm in self.policies.values())
        for needs in others:
            first = first | needs
        return first

    @property
    def demonstrate(self) -> Demonstrate | None:
        return self._any().demonstrate

    @property
    def answered_steps(self) -> int | None:
        return self._any().answered_steps

    @property
    def trains_unscored(self) -> bool:
        return all(algorithm.trains_unscored for algorithm in self.policies.values())

    def loss_settings(self) -> LossSettings | None:
        return self._any().loss_settings()

    def try_out(self, trajectories: Sequence[Trajectory]) -> None:
        for name, algorithm in self.policies.items():
            algorithm.try_out([only(trajectory, name) for trajectory in trajectories])

    async def run(self, session: Any) -> None:
        run: Run = session
        lockstep = _Lockstep(run, list(self.policies))
        tasks = [asyncio.create_task(lockstep.follow(name, algorithm)) for name, algorithm in self.policies.items()]
        try:
            await asyncio.gather(*tasks)
        finally:  # the first error is the run's
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def only(trajectory: Trajectory, policy: str) -> Trajectory:
    """Return the trajectory for one policy: the replies of others are not trained."""

    def reason(transition: Transition) -> str | None:
        return None if transition.policy == policy else other_policy(transition.policy)

    return leave_out(trajectory, reason)


def other_policy(name: str) -> str:
    """The reason why a policy does not train on a reply of another one."""
    return f"sampled by policy {name!r}"


class _Lockstep:
    """The step that several algorithms are in. Whatever the run does, it does once, or for one policy after the other."""

    def __init__(self, run: Run, policies: list[str]) -> None:
        self.run, self.policies = run, policies
        self.turn = asyncio.Lock()
        """First come, first served, so the policies act in one order."""
        self._iterator = run.steps()
        self._steps: list[int] = []
        self._ended = False
        self._collected: tuple[int, list[Trajectory]] | None = None
        self._lessons: dict[str, Lesson] = {}
        self._finished = asyncio.Event()

    async def follow(self, policy: str, algorithm: Algorithm) -> None:
        """Run the algorithm of a policy to the end of the run. Raises `PluginError` if it ends before, because the others wait for it."""
        await algorithm.run(_PolicySession(self, policy))
        if not self._ended:
            raise PluginError(
                f"Algorithm {type(algorithm).__name__!r} of policy {policy!r} ended before the run. With several policies, its `run` must "
                "go through all of session.steps()."
            )

    def step(self, place: int) -> int | None:
        """The step at this place in the run; None: the run ended before."""
        if place == len(self._steps) and not self._ended:
            step = next(self._iterator, None)
            if step is None:
                self._ended = True
            else:
                self._steps.append(step)
        return self._steps[place] if place < len(self._steps) else None

    async def collect(self, step: int, group_size: int) -> list[Trajectory]:
        """The rollouts of a step. The first policy starts them."""
        async with self.turn:
            if self._collected is None or self._collected[0] != step:
                self._collected = step, await self.run.collect(step, group_size)
            return self._collected[1]

    async def finish(self, step: int, lesson: Lesson) -> None:
        """Wait until every policy has learned. The last one finishes the step."""
        self._lessons[lesson.policy or ""] = lesson
        finished = self._finished
        if len(self._lessons) < len(self.policies):
            await finished.wait()
            return
        assert self._collected is not None
        lessons = [self._lessons[name] for name in self.policies]
        await self.run.finish(step, self._collected[1], lessons)
        self._lessons, self._finished = {}, asyncio.Event()
        finished.set()
        await asyncio.sleep(0)  # the others wait longer, so they go first


class _PolicySession(base.Session):
    """The run as the algorithm of one policy sees it."""

    def __init__(self, lockstep: _Lockstep, policy: str) -> None:
        self._lockstep, self._policy = lockstep, policy

    @property
    def max_staleness(self) -> int:
        return self._lockstep.run.max_staleness

    @property
    def trials(self) -> PromptTrials:
        return self._lockstep.run.trials

    @property
    def search(self) -> PromptSearch | None:
        return None

    def say(self, text: str) -> None:
        self._lockstep.run.say(text)

    def steps(self) -> Iterator[int]:
        place = 0
        while (step := self._lockstep.step(place)) is not None:
            yield step
            place += 1

    async def collect(self, step: int, group_size: int) -> list[Trajectory]:
        return [only(trajectory, self._policy) for trajectory in await self._lockstep.collect(step, group_size)]

    async def values(self, batch: Batch) -> Doubles:
        async with self._lockstep.turn:
            return np.asarray(await self._lockstep.run.values(batch, self._policy))

    async def teacher_logprobs(self, batch: Batch) -> Doubles:
        async with self._lockstep.turn:
            return await self._lockstep.run.teacher_logprobs(batch)

    async def update(self, batch: Batch, loss: LossSettings) -> dict[str, float]:
        async with self._lockstep.turn:
            return await self._lockstep.run.update(batch, loss, self._policy)

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
        await self._lockstep.finish(step, Lesson(trajectories, returns, advantages, batch, metrics, self._policy))
