"""Checks of a step's rollouts and metrics: errors that make a run pointless, and notices for the user."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentlightning.contracts.policies import PolicyChoice
from agentlightning.errors import AgentError, JoinError
from agentlightning.rl.batch.build import ZERO_VARIANCE
from agentlightning.rl.trajectory.build import check_joins
from agentlightning.runner.retry import NOTE
from agentlightning.training.fresh_calls import WAYS_OUT, fresh_calls
from agentlightning.training.no_calls import no_calls_report
from agentlightning.training.policies import check_first_calls
from agentlightning.types import Trajectory

log = logging.getLogger("agentlightning")
ERRORS = 2
"""Standard errors by which a mean difference must lie above the alarm. A few improbable tokens decide the mean of a hundred."""


@dataclass(frozen=True, slots=True)
class StepChecks:
    """Checks the steps of a run."""

    agents: Sequence[str] | None
    """Names or patterns of the agents to train; None: all."""
    mismatch_alarm: float
    """Nats per token that engine and trainer may differ by."""
    folder: Path
    """Of the run, for hints."""
    choice: PolicyChoice = field(default_factory=PolicyChoice)
    """Which policy answers a call."""
    trained: Sequence[str] = ()
    """Names of the trained policies."""
    needs_rewards: bool = True
    """Whether rollouts without a reward are not trained."""
    _noticed: set[str] = field(default_factory=set[str])
    """Topics of the notices that come once in a run."""

    def first(self, trajectories: Sequence[Trajectory]) -> None:
        """Check the first rollouts of a run, as `check_first` does."""
        check_first(trajectories, self.agents, folder=self.folder, needs_rewards=self.needs_rewards)
        if self.choice.names:
            check_first_calls(trajectories, self.choice, self.trained)

    def first_step(self, trajectories: Sequence[Trajectory]) -> None:
        """Check the first training step, and log its most frequent diagnostics."""
        check_first(trajectories, self.agents, folder=self.folder, full_step=True, needs_rewards=self.needs_rewards)
        if self.choice.names:
            check_first_calls(trajectories, self.choice, self.trained, full_step=True)
        diagnostics = Counter(text for trajectory in trajectories for text in trajectory.diagnostics)
        for text, count in diagnostics.most_common(5):
            log.warning("%s (%d times in the first step)", text, count)

    def alarm(self, row: dict[str, Any]) -> str | None:
        """Return the alarm of a step whose engine and trainer differ too much, by more than the chance of its few tokens explains."""
        if row.get("mismatch_abs", 0.0) - ERRORS * row.get("mismatch_abs_error", 0.0) <= self.mismatch_alarm:
            return None
        return (
            f"ALARM, step {row['step']}: engine and trainer differ by {row['mismatch_abs']:.4f} in log-probability per token (limit "
            f"{self.mismatch_alarm:g}). The trained policy is not the sampled one. Check model and dtype, and that the engine serves "
            "the last version."
        )

    def notices(self, row: dict[str, Any], trajectories: Sequence[Trajectory]) -> list[str]:
        """Return the sentences that the user should read about a step, besides its metrics."""
        step, notices = row["step"], list[str]()
        if row["failed"]:
            first = next(trajectory for trajectory in trajectories if trajectory.status != "succeeded")
            notices.append(
                f"Step {step}: {row['failed']} of {row['rollouts']} rollouts did not succeed. The first one {first.status}: {first.error}"
            )
        silent = no_calls_report(trajectories)
        if silent is not None:
            rewards = "Their rewards do not count." if row.get("excluded_rollouts") else "Their rewards count."
            notices.append(f"Step {step}: {silent} {rewards} (collection.no_calls)")
        if step == 1 and row.get("nonzero_advantages") == 0.0:
            notices.append(
                f"Step 1: every advantage is zero, so the policy learns nothing from this step ({_rewards(trajectories)}). "
                "Check that rewards differ within a group, and that algorithm.advantage fits algorithm.group_size."
            )
        elif not row["trained_tokens"] and "prompts.candidates" not in row:
            reason = row.get("untrained_reason", ZERO_VARIANCE)
            cause = "every advantage is zero" if reason == ZERO_VARIANCE else f"most tokens are excluded: {reason}"
            if row.get("excluded_rollouts") == row["rollouts"]:
                cause = "no rollout made a model call"
            notices.append(f"Step {step}: no update, {cause}.")
        if step == 1 and row.get("off_policy_abs", 0.0) > self.mismatch_alarm:
            notices.append(
                f"Step 1: another policy than the trained one sampled these replies. Their log-probabilities differ by "
                f"{row['off_policy_abs']:.4f} per token. A loss with a correction takes this into account."
            )
        drift = None if "drift" in self._noticed else drift_notice(step, trajectories)
        if drift is not None:
            self._noticed.add("drift")
            notices.append(drift)
        return notices


def drift_notice(step: int, trajectories: Sequence[Trajectory]) -> str | None:
    """Return a warning if more than a tenth of the continuing model calls do not start with the sampled tokens."""
    contexts = Counter[str]()
    for trajectory in trajectories:
        contexts.update(trajectory.contexts)
    fresh = fresh_calls(contexts)
    if fresh is None:
        return None
    afresh, total, cause = fresh
    return (
        f"Step {step}: {afresh} of {total} continuing model calls do not start with the sampled tokens, so each is trained as a "
        f"row of its own. The commonest cause: {cause}. {WAYS_OUT.get(cause.partition(':')[0], '')}"
    ).rstrip() + " (This warning appears once.)"


def _rewards(trajectories: Sequence[Trajectory]) -> str:
    rewards = sorted({trajectory.reward for trajectory in trajectories if trajectory.reward is not None})
    if len(rewards) == 1:
        return f"every rollout has the reward {rewards[0]:g}"
    return f"their rewards are {', '.join(f'{reward:g}' for reward in rewards[:5])}{', ...' if len(rewards) > 5 else ''}"


def check_first(
    trajectories: Sequence[Trajectory],
    agents: Sequence[str] | None,
    *,
    folder: Path | None = None,
    full_step: bool = False,
    needs_rewards: bool = True,
) -> None:
    """Raise an error with the likely cause if the first rollouts show that the whole run would learn nothing.

    `AgentError`: all rollouts failed, or none was scored and `needs_rewards`. `JoinError`: no model call reached the gateway. `full_step`:
    see `check_joins`.
    """
    if not trajectories:
        raise AgentError(
            "The first step has no rollouts, because the store has none to train on. Wait until rollouts in it have ended and are scored."
        )
    failed = [trajectory for trajectory in trajectories if trajectory.status != "succeeded" and trajectory.reward is None]
    if len(failed) == len(trajectories):
        cause = (failed[0].error or failed[0].status).partition(NOTE)[0].rstrip(".")
        hint = f" See `agl show {folder}`." if folder else ""
        raise AgentError(f"All {len(failed)} rollouts of the first step failed. The first one: {cause}.{hint}")
    if not any(sum(trajectory.calls.values()) for trajectory in trajectories):
        check_joins(trajectories, agents)  # says more if a framework recorded calls
        raise JoinError(
            "No model call of the first step reached the gateway, so there is nothing to train. Give the agent's model "
            "base_url=llm.base_url and api_key=llm.api_key, or install its framework's adapter (adapters = [...]). A command reads "
            "OPENAI_BASE_URL and OPENAI_API_KEY."
        )
    if needs_rewards and not any(trajectory.reward is not None for trajectory in trajectories):
        failure = next((trajectory.error for trajectory in trajectories if trajectory.status == "succeeded" and trajectory.error), None)
        advice = "Return one from the agent function or call agl.reward(value)." if failure is None else f"The first one: {failure}"
        raise AgentError(f"No rollout in the first step received a reward. {advice}")
    check_joins(trajectories, agents, full_step=full_step)
