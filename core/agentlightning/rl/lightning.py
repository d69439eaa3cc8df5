"""LightningRL: credit to the transitions first, then any single-turn algorithm over them (arXiv 2508.03680)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agentlightning.errors import ConfigError
from agentlightning.registry import registry
from agentlightning.rl.batch import make_batch
from agentlightning.rl.loss import LossSettings
from agentlightning.settings import bind, build, build_loss

if TYPE_CHECKING:
    from agentlightning.training import Session

Part = str | Mapping[str, Any] | Callable[..., Any]
"""A registered name, `module:function`, a table `{name = ..., setting = ...}`, or the function itself."""


@dataclass(frozen=True, kw_only=True)
class LightningRL:
    """GRPO, Dr.GRPO, RLOO and their kin are settings of it."""

    name: str = "lightning"
    group_size: int = 8
    """Rollouts of each task in a step."""
    credit: Part = "identical"
    """How much of the episode's return each transition earned."""
    advantage: Part = "grpo"
    """Each return compared with its group."""
    loss: Part | LossSettings = "ppo_clip"
    weight: Literal["rollout", "token", "constant"] = "rollout"
    """What a token weighs: each rollout's tokens sum to one; every token the same; divided by the constant `length`."""
    length: int | None = None
    """L of `weight = "constant"`."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ConfigError(
                f"algorithm.group_size is {self.group_size}; advantages compare the rollouts of a group, so it must be at least 2"
            )
        if self.weight not in ("rollout", "token", "constant"):
            raise ConfigError(f"algorithm.weight is {self.weight!r}; it must be 'rollout', 'token' or 'constant'")
        if (self.weight == "constant") != (self.length is not None):
            raise ConfigError("algorithm.length goes with algorithm.weight = 'constant', and only with it")
        if self.length is not None and self.length < 1:
            raise ConfigError(f"algorithm.length is {self.length}; it must be at least 1")

    def parts(self) -> tuple[Callable[..., Any], Callable[..., Any], LossSettings]:
        """Credit, advantage and loss, with their settings bound and checked. Imports no trainer."""
        return (
            bind("credits", self.credit, where="algorithm.credit"),
            bind("advantages", self.advantage, where="algorithm.advantage"),
            build_loss(self.loss, where="algorithm.loss"),
        )

    async def run(self, session: Session) -> None:
        """Train until the session's last step, or until it is stopped."""
        credit, advantage, loss = self.parts()
        for step in session.steps():
            trajectories = await session.collect(step, session.next_tasks(), self.group_size)
            returns = credit(trajectories)
            advantages = advantage(trajectories, returns)
            batch = make_batch(trajectories, advantages, weight=self.weight, length=self.length)
            metrics = await session.update(batch, loss)
            await session.finish_step(step, trajectories, returns, advantages, batch, metrics)


def algorithm_from(table: Mapping[str, Any]) -> Any:
    """The algorithm that a config's `[algorithm]` table describes."""
    kind = registry().load("algorithms", str(table.get("name", "lightning")))
    return build(kind, dict(table), where="algorithm")
