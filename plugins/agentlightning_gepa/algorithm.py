"""GEPA: a model reads rollouts and proposes better prompts (arXiv 2507.19457).

In each step, a candidate is chosen from the Pareto front over the validation tasks. It runs on the tasks of the step, and a model that sees
its rollouts rewrites one of its prompts. A proposal that earns more on the same tasks is scored on the validation tasks and joins the
candidates. The held-out `eval_tasks` have no part in this.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from agentlightning.algorithms.base import Algorithm, Session
from agentlightning.config.endpoint import ReflectionSettings
from agentlightning.config.parts import Part
from agentlightning.config.presets import with_preset
from agentlightning.errors import ConfigError
from agentlightning.settings import FiniteFloat, PositiveInt, of_kind
from agentlightning.types import JSON
from agentlightning_gepa.bridge import Bridge
from agentlightning_gepa.reflection import PLACES
from agentlightning_gepa.search import Search


@dataclass(frozen=True, kw_only=True)
class GEPA(Algorithm):
    """Optimise the prompts of an agent. One step is one proposal, on `tasks_per_step` tasks. The weights stay as they are."""

    name: str = "gepa"
    trains_weights: ClassVar[bool] = False
    group_size: PositiveInt = 1
    """Rollouts of each task with each candidate. More make the scores less noisy."""
    validation: PositiveInt = 16
    """Score every accepted candidate on N tasks, spread evenly over `tasks`. They may also be among the tasks of a step."""
    rollouts: PositiveInt | None = None
    """End the search before it exceeds so many rollouts. Evaluations do not count. Absent: `steps` ends it."""
    tokens: PositiveInt | None = None
    """End the search after the step with this many prompt and sampled tokens, of rollouts and reflections."""
    perfect_reward: FiniteFloat | None = 1.0
    """Propose nothing in a step in which every task earns this much. False: always propose."""
    reflection: ReflectionSettings | None = None
    """The model that proposes prompts. Absent: the served model itself."""
    reflection_tokens: PositiveInt = 1024
    """Tokens of a proposal, at most."""
    template: str | None = None
    """What the reflecting model is asked. In it, `<prompt>` becomes the prompt, `<examples>` the rollouts with their tasks, messages, and
    feedback, `<tasks>` their tasks alone, and `<notes>` their distinct notes and errors, the most frequent first. Absent: the text of the
    library, for strong models."""
    then: Annotated[dict[str, JSON] | None, of_kind("algorithms")] = None
    """The algorithm that trains the weights afterwards, with the best prompts, in a run of its own. `algorithm = ["gepa", "lightning"]` is
    short for it. Absent: none."""
    trace_characters: Annotated[int, Meta(ge=200)] = 4000
    """Characters that the reflecting model sees of a rollout's task, of its messages, and of its feedback, at most."""

    @property
    def ignores_step_rewards(self) -> str:
        return "algorithm 'gepa' compares the rewards of rollouts."

    def then_algorithm(self) -> Algorithm | None:
        """Return the algorithm that trains the weights afterwards. Raises `ConfigError` for one that trains none."""
        if self.then is None:
            return None
        algorithm: Algorithm = Part.parse("algorithms", with_preset(self.then), "algorithm.then").make()
        if not algorithm.trains_weights:
            raise ConfigError(f"algorithm.then is {self.then['name']!r}, which trains no weights. Name one that does, such as 'lightning'.")
        return algorithm

    def parts(self) -> tuple[()]:
        if (then := self.then_algorithm()) is not None:
            then.parts()
        if self.reflection is not None:
            self.reflection.key()
        if self.template is not None and not any(place in self.template for place in PLACES):
            raise ConfigError(
                f"algorithm.template says nothing about the rollouts: {self.template[:200]!r}. Put {', '.join(PLACES)} into it where the "
                "reflecting model shall see them; one of them is enough."
            )
        least = self.validation * self.group_size
        if self.rollouts is not None and self.rollouts < least:
            raise ConfigError(
                f"algorithm.rollouts is {self.rollouts}, but scoring the agent's own prompts takes {least} (validation x group_size). "
                "Raise rollouts, or lower validation."
            )
        return ()

    async def run(self, session: Session) -> None:
        steps = session.steps()
        step = next(steps, None)
        if step is None:
            return
        bridge = Bridge(asyncio.get_running_loop())
        search = Search(self, session, bridge, steps, step)
        await search.begin()
        try:
            await asyncio.to_thread(search.optimize)
        finally:
            bridge.close()
