"""The causes that make a run worse. A diagnosis looks for them in every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentlightning.rl.batch.build import ZERO_VARIANCE
from agentlightning.training.diagnosis import Diagnosis
from agentlightning.training.step_history import (
    IN_A_ROW,
    NO_SIGNAL,
    NOISE,
    TRUNCATED,
    Steps,
    first_eval,
    has,
    mean_reward,
    no_signal,
    peak_reward,
    reward_error,
    start_error,
)

KL = 0.5
"""Nats per token between policy and reference model. Runs that learn stay below 0.1; at 0.5 the texts are other texts."""
EVAL_STEP = 3
"""First step whose evaluation counts. After one or two optimizer steps, Adam's moments are not settled."""


def _mismatch(steps: Steps) -> Diagnosis | None:
    if not steps.all or not steps.all[-1].get("alarm"):
        return None
    return Diagnosis(
        cause="mismatch",
        evidence=f"Engine and trainer differ by {steps.all[-1]['mismatch_abs']:.3f} in log-probability per token "
        f"(limit {steps.facts.mismatch_alarm:g}).",
        remedy="Check model and dtype, and that the engine serves the last version.",
    )


def _not_scored(steps: Steps) -> Diagnosis | None:
    rows = steps.all[-IN_A_ROW:]
    if len(rows) < IN_A_ROW or any(row.get("trained_tokens") != 0 or has(row, "reward") for row in rows):
        return None
    rollouts, failed, excluded, missing = (
        int(sum(row.get(name, 0) for row in rows)) for name in ("rollouts", "failed", "excluded_rollouts", "unscored")
    )
    silent = max(0, missing - failed)
    remedies = {
        "`agl show` lists their errors. A service that your agent or judge needs may be down.": failed,
        "Check that the agent's client is routed to the gateway, and that no cache answers.": excluded,
        "Return the reward from the agent function, or call agl.reward(value).": silent,
    }
    return Diagnosis(
        cause="not_scored",
        evidence=f"None of the {rollouts} rollouts of the last {IN_A_ROW} steps was scored: {failed} failed, {excluded} made no model "
        f"call, and {silent} ended without a reward.",
        remedy=max(remedies, key=lambda remedy: remedies[remedy]),
    )


def _nothing_trained(steps: Steps) -> Diagnosis | None:
    rows = steps.all[-IN_A_ROW:]
    reasons = [row.get("untrained_reason", ZERO_VARIANCE) for row in rows]
    if len(rows) < IN_A_ROW or any(row.get("trained_tokens") != 0 for row in rows):
        return None
    if ZERO_VARIANCE in reasons or steps.no_signal >= NO_SIGNAL:  # a filter excludes groups without signal, too
        return None
    return Diagnosis(
        cause="nothing_trained",
        evidence=f"The last {IN_A_ROW} steps trained no token. The reason of most replies: {reasons[-1]}.",
        remedy="See `agl show RUN ROLLOUT` for the reason of each reply, and change the setting that excludes it.",
    )


def _kl_explosion(steps: Steps) -> Diagnosis | None:
    divergences = steps.last("kl")
    if not divergences or min(divergences) < KL:
        return None
    return Diagnosis(
        cause="kl_explosion",
        evidence=f"The KL to the reference model is {divergences[-1]:.2f} nats per token after {IN_A_ROW} steps above {KL:g}.",
        remedy=f"Raise algorithm.loss.kl_coef, or lower the learning rate. {steps.way_back}",
    )


def _collapse(steps: Steps) -> Diagnosis | None:
    if not steps.facts.samples or len(steps.scored) <= IN_A_ROW or steps.eval_changes is not None:
        return None
    start, peak = mean_reward(steps.scored[:IN_A_ROW])[0], peak_reward(steps.scored)
    if (base := first_eval(steps.evals)) is not None:
        start = max(start, base)
    limit = max(start, (start + peak) / 2)  # it fell below the start, or lost half of its gain
    recent = steps.scored[-IN_A_ROW:]
    first = steps.scored[0]
    at_once = first["groups"] > 1 and _below(recent, first["reward"], reward_error(first))  # then the first steps' mean is low, too
    if not at_once and not _below(recent, limit, start_error(steps.scored)):
        return None
    cut, silent = steps.last("truncated_fraction"), [no_signal(row) for row in recent]
    signs = [f"{cut[-1]:.0%} of the replies end at the token limit"] if cut and min(cut) >= TRUNCATED else []
    signs += [f"{silent[-1]:.0%} of the groups have no signal"] if min(silent) >= NO_SIGNAL else []
    if not signs:
        return None
    highest = max(peak, start, first["reward"] if at_once else start)
    return Diagnosis(
        cause="collapse",
        evidence=f"The reward fell from {highest:.3f} to {recent[-1]['reward']:.3f}, and {' and '.join(signs)}, "
        f"in {IN_A_ROW} steps in a row.",
        remedy=steps.way_back,
    )


def _below(rows: Sequence[Mapping[str, Any]], reward: float, error: float) -> bool:
    """Whether each of these steps has a lower reward, beyond the noise of both."""
    return all(row["reward"] + NOISE * math.hypot(reward_error(row), error) < reward for row in rows)


def _eval_falls(steps: Steps) -> Diagnosis | None:
    if not steps.evals or steps.evals[-1]["step"] < EVAL_STEP:
        return None
    row = steps.evals[-1]
    fallen = [kind for kind in ("greedy", "sampled") if has(row, f"eval.{kind}.change_high") and row[f"eval.{kind}.change_high"] < 0]
    if not fallen:
        return None
    kind, other = fallen[0], "sampled" if fallen[0] == "greedy" else "greedy"
    change, low, high = (row[f"eval.{kind}.{name}"] for name in ("change", "change_low", "change_high"))
    rest = f" The {other} one changed by {row[f'eval.{other}.change']:+.3f}." if has(row, f"eval.{other}.change") else ""
    return Diagnosis(
        cause="eval_falls" if len(fallen) == 2 or kind == "sampled" else "greedy_falls",
        evidence=f"The {kind} eval reward changed by {change:+.3f} from before training (95% interval {low:+.3f} to {high:+.3f}).{rest}",
        remedy=f"The learning rate is likely too high. {steps.way_back}",
    )


HARM: tuple[Callable[[Steps], Diagnosis | None], ...] = (_mismatch, _not_scored, _nothing_trained, _kl_explosion, _collapse, _eval_falls)
"""The likeliest first."""
