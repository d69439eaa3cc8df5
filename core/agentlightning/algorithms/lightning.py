"""LightningRL: credit to the transitions first, then any single-turn algorithm over them (arXiv 2508.03680)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np

from agentlightning.algorithms.base import Algorithm, Session
from agentlightning.config.tables import bind, build, build_loss, call, named
from agentlightning.errors import ConfigError
from agentlightning.registry.registry import registry
from agentlightning.rl.advantage import Estimate, needs_of
from agentlightning.rl.marks import Needs
from agentlightning.rl.advantage.per_agent import PerAgent
from agentlightning.types import Doubles
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.contracts.batch import Batch
from agentlightning.rl.batch.build import LossAggregation, make_batch
from agentlightning.rl.credit import is_outcome_alone
from agentlightning.contracts.loss import LossSettings
from agentlightning.types import Trajectory

Part = str | Mapping[str, Any] | Callable[..., Any]
"""A registered name, `module:function`, a table `{name = ..., setting = ...}`, or the function itself."""


@dataclass(frozen=True, kw_only=True)
class LightningRL(Algorithm):
    """GRPO, Dr.GRPO, RLOO and their kin are settings of it."""

    name: str = "lightning"
    group_size: int = 8
    """Rollouts of each task in a step."""
    credit: Part = "identical"
    """How much of the episode's return each transition earned."""
    advantage: Part = "grpo"
    """Each return compared with others. A table without `name` has one for each agent: `{write = "grpo", check = "rloo", "*" = "rloo"}`."""
    agent_weights: dict[str, float] = field(default_factory=dict[str, float])
    """What the advantages of an agent (a name or pattern; the first that fits) are multiplied by; 1 for those that are not here. A credit
    could scale returns, but then no baseline of another agent would fit them."""
    loss: Part | LossSettings = "ppo_clip"
    loss_aggregation: Literal["sequence_mean", "token_mean", "constant_length"] = "sequence_mean"
    """What a token weighs: each rollout's tokens sum to one; every token the same; divided by the constant `length`."""
    length: int | None = None
    """L of `loss_aggregation = "constant_length"`."""

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ConfigError(f"algorithm.group_size is {self.group_size}; it must be at least 1")
        if self.loss_aggregation not in ("sequence_mean", "token_mean", "constant_length"):
            raise ConfigError(f"algorithm.loss_aggregation is {self.loss_aggregation!r}; it must be 'rollout', 'token' or 'constant'")
        if (self.loss_aggregation == "constant_length") != (self.length is not None):
            raise ConfigError("algorithm.length goes with algorithm.loss_aggregation = 'constant', and only with it")
        if self.length is not None and self.length < 1:
            raise ConfigError(f"algorithm.length is {self.length}; it must be at least 1")

        for name, weight in self.agent_weights.items():
            if not math.isfinite(weight):
                raise ConfigError(f"algorithm.agent_weights.{name} is {weight}; expected a finite number")

    def parts(self) -> tuple[Callable[..., Any], Callable[..., Any], LossSettings]:
        """Credit, advantage and loss, with their settings bound and checked. Imports no trainer."""
        credit, advantage = self._credit(), self._advantage()
        if needs_of(advantage).group and self.group_size < 2:
            raise ConfigError(
                f"algorithm.group_size is {self.group_size}, and algorithm.advantage {_named(self.advantage)} compares the rollouts of a "
                "group; use 2 or more, or an advantage that compares none (reinforce, reinforce_pp, gae)"
            )
        loss = build_loss(self.loss, where="algorithm.loss")
        if loss.over_pairs:
            raise ConfigError(
                f"algorithm.loss {loss.name!r} compares rollouts in pairs, and algorithm 'lightning' makes none; "
                "use algorithm = {name = 'dpo'}"
            )
        return credit, advantage, loss

    @property
    def needs(self) -> Needs:
        """What credit and advantage ask of the run."""
        return needs_of(self._credit()) | needs_of(self._advantage())

    @property
    def ignores_step_rewards(self) -> str | None:
        """Why rewards of steps would change nothing; None: they count."""
        if not is_outcome_alone(self._credit()) or needs_of(self._advantage()).rewards:
            return None
        return f"algorithm.credit {_named(self.credit)} uses no rewards of steps; take one that does (per_step, discounted, learned)"

    def _credit(self) -> Callable[..., Any]:
        return bind("credits", self.credit, where="algorithm.credit")

    def _advantage(self) -> Callable[..., Any]:
        part = self.advantage
        if isinstance(part, Mapping) and "name" not in part:
            if not part:
                raise ConfigError("algorithm.advantage is an empty table; expected a name, or one for each agent")
            parts = cast("Mapping[str, Any]", part).items()
            return PerAgent({key: bind("advantages", each, where=f"algorithm.advantage.{key}") for key, each in parts})
        return bind("advantages", part, where="algorithm.advantage")

    async def run(self, session: Session) -> None:
        """Train until the session's last step, or until it is stopped."""
        credit, advantage, loss = self.parts()
        early, critic = needs_of(credit).critic, self.needs.critic
        if session.max_staleness and loss.correction is None:
            session.say(
                f"tokens may be {session.max_staleness} steps old when they are trained, and nothing corrects for that; "
                'algorithm.loss.correction = "tis" does'
            )
        for step in session.steps():
            trajectories = await session.collect(step, self.group_size)
            rollouts = RolloutArrays.of(trajectories)
            if early:
                rollouts = await ask_critic(session, rollouts, rollouts.returns[rollouts.rollout])
            returns = self.returns(rollouts, credit)
            if critic and not early:
                rollouts = await ask_critic(session, rollouts, returns)
            estimate = self.estimate(rollouts, returns, advantage)
            if early:
                estimate = with_target(rollouts, estimate, returns)
            batch = learner_batch(rollouts, estimate, loss_aggregation=self.loss_aggregation, length=self.length)
            metrics = await session.update(batch, loss)
            await session.finish_step(step, trajectories, rollouts.split(returns), rollouts.split(estimate.advantage), batch, metrics)

    def try_out(self, trajectories: Sequence[Trajectory]) -> None:
        """Credit and advantage of some trajectories, where no critic is asked: what they cannot do is said now."""
        credit, advantage, _ = self.parts()
        if not self.needs.critic:
            rollouts = RolloutArrays.of(trajectories)
            self.estimate(rollouts, self.returns(rollouts, credit), advantage)

    def returns(self, rollouts: RolloutArrays, credit: Callable[..., Any]) -> Doubles:
        """(transitions,) what a credit gives, checked."""
        returns = call("algorithm.credit", self.credit, _floats, call("algorithm.credit", self.credit, credit, rollouts))
        if returns.shape != (rollouts.transitions,):
            raise ConfigError(
                f"algorithm.credit {_named(self.credit)} gave an array of shape {returns.shape} for {rollouts.transitions} transitions; "
                "expected one number for each"
            )
        return returns

    def estimate(self, rollouts: RolloutArrays, returns: Doubles, advantage: Callable[..., Any]) -> Estimate:
        """What an advantage gives, checked, with the weights of the agents."""
        made = call("algorithm.advantage", self.advantage, advantage, rollouts, returns)
        if not isinstance(made, Estimate):
            made = Estimate(call("algorithm.advantage", self.advantage, _floats, made), np.full(int(rollouts.tokens.sum()), np.nan))
        estimate = made
        try:
            per_token = rollouts.per_token(estimate.advantage)
        except ValueError as error:
            raise ConfigError(f"algorithm.advantage {_named(self.advantage)} gave {error}") from error
        if not self.agent_weights:
            return estimate
        weight, left = np.ones(rollouts.transitions), np.ones(rollouts.transitions, np.bool_)
        for pattern, value in self.agent_weights.items():
            chosen = left & rollouts.acts(pattern)
            weight[chosen], left = value, left & ~chosen
        return replace(estimate, advantage=per_token * np.repeat(weight, rollouts.tokens))


async def ask_critic(session: Session, rollouts: RolloutArrays, returns: Doubles) -> RolloutArrays:
    """The rollouts with the critic's values; it is not asked about transitions whose return is NaN."""
    scored = make_batch(rollouts.trajectories, [np.where(np.isnan(each), np.nan, 1.0) for each in rollouts.split(returns)])
    return with_values(rollouts, scored, await session.values(scored))


def with_target(rollouts: RolloutArrays, estimate: Estimate, returns: Doubles) -> Estimate:
    """With what the critic learns of a credit that asked it: the return, before the first token of each transition. What the advantage
    gives it to learn comes first."""
    some = rollouts.tokens > 0
    target, first = estimate.target.copy(), rollouts.offsets[:-1][some]
    target[first] = np.where(np.isnan(target[first]), returns[some], target[first])
    return replace(estimate, target=target)


def with_values(rollouts: RolloutArrays, batch: Batch, values: Doubles) -> RolloutArrays:
    """The rollouts with what the critic said of each token of a batch of them; what it was not asked for is not to be trained."""
    number = {t.completion_id: k for k, t in enumerate(t for each in rollouts.trajectories for t in each.transitions)}
    offsets, found = rollouts.offsets, np.full(int(rollouts.tokens.sum()), np.nan)
    chosen = np.zeros(rollouts.transitions, np.bool_)
    for name, said in batch.by_transition(values).items():
        k = number[name]
        chosen[k] = True
        found[offsets[k] : offsets[k + 1]] = said
    return replace(rollouts.only(chosen), values=found)


def learner_batch(rollouts: RolloutArrays, estimate: Estimate, *, loss_aggregation: LossAggregation, length: int | None) -> Batch:
    """The batch of an estimate, with values and targets where there is a critic."""
    split = rollouts.split
    if rollouts.values is None:
        return make_batch(rollouts.trajectories, split(estimate.advantage), loss_aggregation=loss_aggregation, length=length)
    critic = list(zip(split(rollouts.values), split(estimate.target), strict=True))
    return make_batch(rollouts.trajectories, split(estimate.advantage), loss_aggregation=loss_aggregation, length=length, critic=critic)


def _floats(values: Any) -> Doubles:
    return np.asarray(values, np.float64)


def _named(part: Any) -> str:
    if isinstance(part, Mapping) and "name" not in part:
        return ", ".join(f"{key} = {named(each)}" for key, each in cast("Mapping[str, Any]", part).items())
    return named(part)


def algorithm_from(table: Mapping[str, Any]) -> Any:
    """The algorithm that a config's `[algorithm]` table describes."""
    kind = registry().load("algorithms", str(table.get("name", "lightning")))
    return build(kind, dict(table), where="algorithm")
