"""LightningRL: credit to the transitions first, then any single-turn algorithm over them (arXiv 2508.03680)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, cast

import numpy as np

from agentlightning.algorithms.base import Algorithm, Session
from agentlightning.algorithms.distillation import ask_teacher
from agentlightning.algorithms.sft import supervised_step
from agentlightning.config.parts import Part, PartValue, call, named
from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.errors import ConfigError
from agentlightning.rl.advantage import Estimate
from agentlightning.rl.advantage.per_agent import PerAgent
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.batch.build import LossAggregation, make_batch
from agentlightning.rl.marks import Needs, marks_of, needs_of_advantage, needs_of_credit
from agentlightning.settings import FiniteFloat, FiniteNonNegative, NonNegativeInt, PositiveInt, of_kind
from agentlightning.types import Doubles, Trajectory


@dataclass(frozen=True, kw_only=True)
class LightningRL(Algorithm):
    """Reinforcement learning with exchangeable credit, advantage, and loss. GRPO, RLOO, and PPO are settings of it."""

    name: str = "lightning"
    group_size: PositiveInt = 8
    """Rollouts of each task in a step."""
    credit: Annotated[PartValue, of_kind("credits")] = "identical"
    """How much of the rollout's return each transition earned."""
    advantage: Annotated[PartValue, of_kind("advantages")] = "grpo"
    """Each return compared with others. A table without `name` has one for each agent: `{write = "grpo", check = "rloo", "*" = "rloo"}`."""
    agent_weights: dict[str, FiniteFloat] = field(default_factory=dict[str, float])
    """Factors of the advantages, by agent (a name or pattern; the first match counts); 1 for other agents. They scale advantages and not
    returns, so that they leave the baselines of other agents alone."""
    teacher_coef: FiniteNonNegative = 0.0
    """Coefficient of the advantage that a `[teacher]` gives each token: its log-probability of the token minus the recorded one. It is
    added to the advantage of the rewards. 0 is off."""
    demonstrated_steps: NonNegativeInt = 0
    """In this many first steps the `[teacher]` answers the agent, once for each task, and its replies are trained like those of `sft`."""
    min_reward: FiniteFloat = 1.0
    """Rollouts of `demonstrated_steps` with less, and unscored ones, are not trained."""
    loss: Annotated[PartValue | LossSettings, of_kind("losses")] = "ppo_clip"
    """The term of a token that training minimises."""
    loss_aggregation: Literal["sequence_mean", "token_mean", "constant_length"] = "sequence_mean"
    """The weight of a token: each rollout's tokens sum to one; all tokens weigh the same; each weighs 1 / `length`."""
    length: PositiveInt | None = None
    """L of `loss_aggregation = "constant_length"`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.loss_aggregation == "constant_length") != (self.length is not None):
            raise ConfigError(
                f"algorithm.length is {self.length} and algorithm.loss_aggregation is {self.loss_aggregation!r}. "
                "Set length exactly when loss_aggregation is 'constant_length'."
            )

    def parts(self) -> tuple[Callable[..., Any], Callable[..., Any], LossSettings]:
        credit, advantage = self._credit(), self._advantage()
        if needs_of_advantage(advantage).group and self.group_size < 2:
            raise ConfigError(
                f"algorithm.group_size is {self.group_size}, and algorithm.advantage {_named(self.advantage)} compares the rollouts of a "
                "group. Set group_size to 2 or more, or use an advantage that compares none: reinforce, reinforce_pp, gae, or your own "
                "function with the mark agentlightning.rl.marks.independent."
            )
        if "without_rewards" in marks_of(advantage) and not self.teacher_coef:
            raise ConfigError(
                f"algorithm.advantage {_named(self.advantage)} learns from a teacher alone, and algorithm.teacher_coef is 0. Set "
                "teacher_coef, or use algorithm = 'distillation'."
            )
        loss = Part.parse("losses", self.loss, "algorithm.loss").make()
        if loss.over_pairs:
            raise ConfigError(
                f"algorithm.loss {loss.name!r} compares pairs of rollouts, and algorithm 'lightning' makes none. "
                "Use algorithm = {name = 'dpo'}."
            )
        return credit, advantage, loss

    @property
    def needs(self) -> Needs:
        return needs_of_credit(self._credit()) | needs_of_advantage(self._advantage()) | self._needs_of_teacher()

    @property
    def answered_steps(self) -> int:
        return self.demonstrated_steps

    def _needs_of_teacher(self) -> Needs:
        return Needs(teacher=self.teacher_coef > 0, answers=self.demonstrated_steps > 0)

    @property
    def trains_unscored(self) -> bool:
        return "without_rewards" in marks_of(self._advantage())

    @property
    def ignores_step_rewards(self) -> str | None:
        if "outcome_alone" not in marks_of(self._credit()) or needs_of_advantage(self._advantage()).rewards:
            return None
        return f"algorithm.credit {_named(self.credit)} does not read them. Use a credit that does (per_step, discounted, learned)."

    def _credit(self) -> Callable[..., Any]:
        return Part.parse("credits", self.credit, "algorithm.credit").make()

    def _advantage(self) -> Callable[..., Any]:
        part = self.advantage
        if isinstance(part, Mapping) and "name" not in part:
            if not part:
                raise ConfigError("algorithm.advantage is an empty table. Name an advantage, or one for each agent.")
            by_agent = cast("Mapping[str, Any]", part).items()
            return PerAgent({agent: Part.parse("advantages", one, f"algorithm.advantage.{agent}").make() for agent, one in by_agent})
        return Part.parse("advantages", part, "algorithm.advantage").make()

    async def run(self, session: Session) -> None:
        credit, advantage, loss = self.parts()
        credit_asks, critic = needs_of_credit(credit).critic, self.needs.critic
        if session.max_staleness and loss.correction is None:
            session.say(
                f"collection.max_staleness is {session.max_staleness}, and no correction accounts for off-policy tokens. "
                'Set algorithm.loss.correction = "tis".'
            )
        for step in session.steps():
            if step < self.demonstrated_steps:
                await supervised_step(session, step, min_reward=self.min_reward, loss_aggregation="token_mean")
                continue
            trajectories = await session.collect(step, self.group_size)
            rollouts = RolloutArrays.of(trajectories)
            if credit_asks:
                rollouts = await ask_critic(session, rollouts, rollouts.returns[rollouts.rollout])
            returns = self.returns(rollouts, credit)
            if critic and not credit_asks:
                rollouts = await ask_critic(session, rollouts, returns)
            estimate, measured = self.estimate(rollouts, returns, advantage), dict[str, float]()
            if self.teacher_coef:
                gap, measured = await ask_teacher(session, rollouts, estimate.advantage)
                taught = rollouts.per_token(estimate.advantage) + self.teacher_coef * self._weights(rollouts) * gap
                estimate = replace(estimate, advantage=taught)
            if credit_asks:
                estimate = with_target(rollouts, estimate, returns)
            batch = learner_batch(rollouts, estimate, returns, loss_aggregation=self.loss_aggregation, length=self.length)
            metrics = {**await session.update(batch, loss), **measured}
            nonzero = nonzero_advantages(rollouts, estimate)
            if nonzero is not None:
                metrics["nonzero_advantages"] = nonzero
            await session.finish_step(step, trajectories, rollouts.split(returns), rollouts.split(estimate.advantage), batch, metrics)

    def try_out(self, trajectories: Sequence[Trajectory]) -> None:
        """Without a critic only: the dry run asks none."""
        credit, advantage, _ = self.parts()
        if not self.needs.critic:
            rollouts = RolloutArrays.of(trajectories)
            self.estimate(rollouts, self.returns(rollouts, credit), advantage)

    def returns(self, rollouts: RolloutArrays, credit: Callable[..., Any]) -> Doubles:
        """(transitions,) the returns of credit, checked."""
        returns = call("algorithm.credit", self.credit, _floats, call("algorithm.credit", self.credit, credit, rollouts))
        if returns.shape != (rollouts.transitions,):
            raise ConfigError(
                f"algorithm.credit {_named(self.credit)} returned shape {returns.shape} for {rollouts.transitions} transitions. "
                "Return one number for each."
            )
        return returns

    def estimate(self, rollouts: RolloutArrays, returns: Doubles, advantage: Callable[..., Any]) -> Estimate:
        """The advantages, checked, with the weights of the agents."""
        estimate = call("algorithm.advantage", self.advantage, advantage, rollouts, returns)
        if not isinstance(estimate, Estimate):
            no_target = np.full(int(rollouts.tokens.sum()), np.nan)
            estimate = Estimate(call("algorithm.advantage", self.advantage, _floats, estimate), no_target)
        try:
            per_token = rollouts.per_token(estimate.advantage)
        except ValueError as error:
            raise ConfigError(f"algorithm.advantage {_named(self.advantage)} returned {error}") from error
        if not self.agent_weights:
            return estimate
        return replace(estimate, advantage=per_token * self._weights(rollouts))

    def _weights(self, rollouts: RolloutArrays) -> Doubles:
        """(tokens,) the factors of the agents."""
        weight, unmatched = np.ones(rollouts.transitions), np.ones(rollouts.transitions, np.bool_)
        for pattern, factor in self.agent_weights.items():
            chosen = unmatched & rollouts.acts(pattern)
            weight[chosen], unmatched = factor, unmatched & ~chosen
        return np.repeat(weight, rollouts.tokens)


def learner_batch(
    rollouts: RolloutArrays,
    estimate: Estimate,
    returns: Doubles | None = None,
    *,
    loss_aggregation: LossAggregation,
    length: int | None,
) -> Batch:
    """The batch of an estimate, with values and targets if there is a critic.

    A rollout with `returns` counts in the denominators, even if an advantage leaves out those of its transitions that are not trained.
    """
    critic = None
    if rollouts.values is not None:
        critic = list(zip(rollouts.split(rollouts.values), rollouts.split(estimate.target), strict=True))
    advantage = estimate.advantage
    if returns is not None:
        excluded = np.isfinite(returns) & ~rollouts.trained  # (transitions,)
        excluded = excluded if advantage.shape == excluded.shape else np.repeat(excluded, rollouts.tokens)
        advantage = np.where(excluded & np.isnan(advantage), 0.0, advantage)
    advantages = rollouts.split(advantage)
    return make_batch(rollouts.trajectories, advantages, loss_aggregation=loss_aggregation, length=length, critic=critic)


def nonzero_advantages(rollouts: RolloutArrays, estimate: Estimate) -> float | None:
    """The part of the trainable tokens with an advantage that is not zero; None if there are none."""
    advantages = rollouts.per_token(estimate.advantage)[np.repeat(rollouts.trained, rollouts.tokens)]
    advantages = advantages[np.isfinite(advantages)]
    return float(np.count_nonzero(advantages) / len(advantages)) if len(advantages) else None


async def ask_critic(session: Session, rollouts: RolloutArrays, returns: Doubles) -> RolloutArrays:
    """The rollouts with the critic's values; transitions with the return NaN have none."""
    scored = make_batch(rollouts.trajectories, [np.where(np.isnan(part), np.nan, 1.0) for part in rollouts.split(returns)])
    return with_values(rollouts, scored, await session.values(scored))


def with_values(rollouts: RolloutArrays, batch: Batch, values: Doubles) -> RolloutArrays:
    """The rollouts with the critic's value of each token of a batch of them. Transitions outside the batch are not trained."""
    index = {t.completion_id: k for k, t in enumerate(t for trajectory in rollouts.trajectories for t in trajectory.transitions)}
    offsets, by_token = rollouts.offsets, np.full(int(rollouts.tokens.sum()), np.nan)
    chosen = np.zeros(rollouts.transitions, np.bool_)
    for completion_id, response in batch.by_transition(values).items():
        k = index[completion_id]
        chosen[k] = True
        by_token[offsets[k] : offsets[k + 1]] = response
    return replace(rollouts.only(chosen), values=by_token)


def with_target(rollouts: RolloutArrays, estimate: Estimate, returns: Doubles) -> Estimate:
    """The estimate in which the critic also learns the returns of a credit that asked it, before the first token of each transition.
    Targets of the advantage take precedence."""
    sampled = rollouts.tokens > 0
    target, first = estimate.target.copy(), rollouts.offsets[:-1][sampled]
    target[first] = np.where(np.isnan(target[first]), returns[sampled], target[first])
    return replace(estimate, target=target)


def _floats(values: Any) -> Doubles:
    return np.asarray(values, np.float64)


def _named(part: Any) -> str:
    if isinstance(part, Mapping) and "name" not in part:
        return ", ".join(f"{agent} = {named(one)}" for agent, one in cast("Mapping[str, Any]", part).items())
    return named(part)
