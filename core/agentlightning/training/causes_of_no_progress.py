"""The causes of a reward that does not rise. A diagnosis looks for them while it does not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from agentlightning.training.diagnosis import Diagnosis
from agentlightning.training.fresh_calls import WAYS_OUT, fresh_calls
from agentlightning.training.step_history import IN_A_ROW, NO_SIGNAL, NOISE, TRUNCATED, Steps, has, last_measured, mean_reward

LOW, HIGH = 1 / 3, 2 / 3
"""Groups without signal are all wrong or all right if their mean reward lies in this third of the rewards seen."""
TRUNCATED_REWARD = 0.1
"""Position of their mean reward in the rewards seen. A cut reply that earns more has not lost its answer."""
TOOL_OFFERS = 20
"""Calls with tools that must be seen. A model that calls a tool in a tenth of them misses all of 20 in 12 % of cases."""
TOOL_USE = 0.02
"""Share of calls that use a tool. Below it a step of 50 calls has none, so nothing can be reinforced."""
TRAINED_AGENTS = 0.25
"""Share of the sampled tokens. Below a quarter, the other agents decide most of the reward."""
CONTINUING = 20
"""Continuing calls that must be seen for that share."""
ENTROPY_LEFT = 0.1
"""Share of the first steps' entropy. A run that learns keeps more, or has almost solved its tasks."""
CLIPPED = 0.3
"""Share of clipped tokens. PPO is usually between 0.05 and 0.2; above 0.3 the steps are too large for its approximation."""
QUIET_STEPS = 20
"""Trained steps after which an effect must show. Published runs with lr 1e-6 rise within 20 steps."""
QUIET_WINDOW = 5
"""Steps at each end of the run that are compared for an effect."""
ENTROPY_MOVES = 0.03
"""Relative change of the entropy that counts as an effect. Every update that matters moves it."""


def _tools_never_called(steps: Steps) -> Diagnosis | None:
    offers, uses = sum(steps.last("tool_offers")), sum(steps.last("tool_uses"))
    if offers < TOOL_OFFERS or uses > TOOL_USE * offers or steps.solved:
        return None
    return Diagnosis(
        cause="tools_never_called",
        evidence=f"The model called a tool in {uses:.0f} of {offers:.0f} calls that offered one, in the last {IN_A_ROW} steps.",
        remedy="Show a worked call in the prompt, start with a supervised warm start, or check the tool format with `agl models check`.",
    )


def _truncated(steps: Steps) -> Diagnosis | None:
    shares = steps.last("truncated_fraction")
    # Where all rewards are equal, no position is known, and only 0 earns nothing.
    worth = [float(reward > 0) if (place := steps.position(reward)) is None else place for reward in steps.last("truncated_reward")]
    if not shares or not worth or min(shares) < TRUNCATED or any(position > TRUNCATED_REWARD for position in worth) or steps.solved:
        return None
    limit = "" if steps.facts.max_tokens is None else f" (sampling.max_tokens = {steps.facts.max_tokens})"
    return Diagnosis(
        cause="truncated",
        evidence=f"{shares[-1]:.0%} of the replies end at the token limit{limit}, and at least {min(shares):.0%} did for {IN_A_ROW} steps.",
        remedy="Raise the limit, ask for shorter replies, or check the model's end tokens with `agl models check`.",
    )


def _never_scores(steps: Steps) -> Diagnosis | None:
    if steps.range is None or steps.range[0] != steps.range[1] or len(steps.scored) < IN_A_ROW:
        return None
    reward, rollouts = steps.range[0], sum(row.get("rollouts", 0) for row in steps.scored)
    evidence = f"All {rollouts} rollouts of the first {len(steps.scored)} steps have the reward {reward:g}."
    if reward >= 1:
        return Diagnosis(cause="all_right", evidence=evidence, remedy="Use harder tasks, or check that the reward can be lower.")
    return Diagnosis(
        cause="never_scores",
        evidence=evidence,
        remedy="Compare the replies with the format that your reward reads. Then change the prompt, use easier tasks, or a warm start.",
    )


def _entropy_collapse(steps: Steps) -> Diagnosis | None:
    first, last = [row["entropy"] for row in steps.scored if has(row, "entropy")][:IN_A_ROW], last_measured(steps.scored, "entropy")
    if len(steps.scored) < 2 * IN_A_ROW or len(last) < IN_A_ROW or max(last) > ENTROPY_LEFT * np.mean(first) or steps.solved:
        return None
    return Diagnosis(
        cause="entropy_collapse",
        evidence=f"The entropy fell from {np.mean(first):.2f} to {last[-1]:.3f} nats per token, so the replies of a group hardly differ.",
        remedy=f"Set algorithm.loss.entropy_coef = 0.001 or raise sampling.temperature. {steps.way_back}",
    )


def _no_group_signal(steps: Steps) -> Diagnosis | None:
    if steps.no_signal < NO_SIGNAL:
        return None
    rewards = [row["zero_variance_reward"] for row in steps.scored[-IN_A_ROW:] if has(row, "zero_variance_reward")]
    reward = float(np.mean(rewards)) if rewards else float(np.mean(steps.last("reward")))
    position = steps.position(reward)
    curriculum = "" if steps.facts.sampler == "curriculum" else 'sampler = "curriculum"'
    filters = "a higher collection.resample" if steps.facts.filters else 'collection.filter = "nonzero_variance" with collection.resample'
    share = f"In the last {IN_A_ROW} steps, at least {steps.no_signal:.0%} of the groups had no signal: "
    if position is not None and position >= HIGH:
        return Diagnosis(
            cause="all_right",
            evidence=f"{share}their rollouts were all right, with mean reward {reward:.2f}.",
            remedy=f"Use harder tasks, or {curriculum} to find them." if curriculum else "Use harder tasks.",
        )
    if position is None or position <= LOW:
        return Diagnosis(
            cause="all_wrong",
            evidence=f"{share}their rollouts were all wrong, with mean reward {reward:.2f}.",
            remedy="Use easier tasks, a warm start, a reward for partial progress, or a larger algorithm.group_size.",
        )
    return Diagnosis(
        cause="no_signal",
        evidence=f"{share}some were all wrong and some all right, with mean reward {reward:.2f}.",
        remedy=f"Set {curriculum and f'{curriculum}, or '}{filters}.",
    )


def _clipped(steps: Steps) -> Diagnosis | None:
    shares = steps.last("clip_fraction")
    if not shares or min(shares) < CLIPPED:
        return None
    return Diagnosis(
        cause="clipped",
        evidence=f"The loss clips {shares[-1]:.0%} of the tokens, and at least {min(shares):.0%} in the last {IN_A_ROW} steps.",
        remedy=f"Lower algorithm.loss.epochs or minibatches, or the learning rate. {steps.lower_rate}",
    )


def _few_tokens(steps: Steps) -> Diagnosis | None:
    shares = steps.last("agent_fraction")
    if not shares or max(shares) > TRAINED_AGENTS or steps.solved:
        return None
    return Diagnosis(
        cause="few_tokens",
        evidence=f"The agents in training sample {np.mean(shares):.0%} of the tokens.",
        remedy="Add the other agents to `agents`, or shorten their replies.",
    )


def _history_rewritten(steps: Steps) -> Diagnosis | None:
    contexts: dict[str, int] = {}
    for row in steps.scored[-IN_A_ROW:]:
        for name in row:
            if name.startswith("context."):
                context = name.removeprefix("context.").replace("_", " ")
                contexts[context] = contexts.get(context, 0) + row[name]
    fresh = fresh_calls(contexts)
    if fresh is None or fresh[1] < CONTINUING:
        return None
    afresh, total, cause = fresh
    return Diagnosis(
        cause="history_rewritten",
        evidence=f"{afresh} of {total} continuing model calls do not start with the sampled tokens. The commonest cause: {cause}.",
        remedy=WAYS_OUT.get(cause, "`agl show RUN ROLLOUT` names the cause of each call."),
    )


def _no_effect(steps: Steps) -> Diagnosis | None:
    trained = [row for row in steps.scored if has(row, "entropy") and row.get("trained_tokens")]
    if len(trained) < QUIET_STEPS:
        return None
    first, last = trained[:QUIET_WINDOW], trained[-QUIET_WINDOW:]
    rewards = mean_reward(first), mean_reward(last)
    entropies = [float(np.mean([row["entropy"] for row in rows])) for rows in (first, last)]
    if abs(entropies[1] - entropies[0]) > ENTROPY_MOVES * abs(entropies[0]):
        return None
    noise = NOISE * math.hypot(rewards[0][1], rewards[1][1])
    changes = steps.eval_changes
    if abs(rewards[1][0] - rewards[0][0]) > noise if changes is None else any(low > 0 or high < 0 for low, high in changes):
        return None
    lr, suggested = steps.facts.lr, steps.facts.suggested_lr
    higher = None if lr is None else max(3 * lr, suggested or 0.0)
    return Diagnosis(
        cause="no_effect",
        evidence=f"In {len(trained)} trained steps the reward went from {rewards[0][0]:.3f} to {rewards[1][0]:.3f} and the entropy from "
        f"{entropies[0]:.3f} to {entropies[1]:.3f}, which is no change.",
        remedy="Raise trainer.lr." if lr is None or higher is None else f"Raise trainer.lr from {lr:.1e} to {higher:.1e}.",
    )


NO_PROGRESS: tuple[Callable[[Steps], Diagnosis | None], ...] = (
    _tools_never_called,  # the next three explain why groups have no signal
    _truncated,
    _never_scores,
    _entropy_collapse,
    _no_group_signal,
    _clipped,
    _few_tokens,
    _history_rewritten,
    _no_effect,
)
"""The likeliest first."""
