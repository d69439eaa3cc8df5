"""What runs had learned after equally many tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentlightning.errors import RunError
from agentlightning.records.comparison import Side, read_side
from agentlightning.training.choice import Evaluation
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Measured:
    """An evaluation of a run."""

    step: int
    tokens: int
    """Of the training rollouts before it: those that the policies sampled, and those that a teacher demonstrated."""


async def equal_tokens(runs: Sequence[RunFolder], reward_weights: Mapping[str, float] | None = None) -> tuple[int, list[Side]]:
    """Return a number of tokens, and what each run had learned after as many. The number is that of the run with the fewest.

    Tokens are those that the training rollouts sampled, or that a teacher demonstrated, up to an evaluation. Prompts, evaluations, and
    reflections do not count. Between two evaluations, the reward of each task is interpolated by tokens. `reward_weights`: read the rewards
    by these instead of the run's own. Raises `RunError` for a run without an evaluation after training began.
    """
    curves = [measured(run) for run in runs]
    tokens = min(curve[-1].tokens for curve in curves)
    return tokens, [await _at(run, curve, tokens, reward_weights) for run, curve in zip(runs, curves, strict=True)]


def measured(run: RunFolder) -> list[Measured]:
    """Return the evaluations of a run, in order."""
    evaluations, tokens = list[Measured](), 0
    for row in read_metrics(run.path):
        tokens += row.get("sampled_tokens", 0) + row.get("demonstrated_tokens", 0)
        if "eval.sampled" in row or "eval.greedy" in row:
            evaluations.append(Measured(row["step"], tokens))
    if not evaluations or not evaluations[-1].step:
        raise RunError(f"Run {run.name} was not evaluated after training began. Tokens are compared at evaluations: set eval_tasks.")
    return evaluations


async def _at(run: RunFolder, curve: Sequence[Measured], tokens: int, reward_weights: Mapping[str, float] | None) -> Side:
    later = next(place for place, one in enumerate(curve) if one.tokens >= tokens)
    after = await read_side(run, curve[later].step, reward_weights)
    if curve[later].tokens == tokens:
        return after
    if later == 0:
        raise RunError(f"Run {run.name} had sampled more than {tokens:,} tokens before its first evaluation. Set eval.every.")
    before = await read_side(run, curve[later - 1].step, reward_weights)
    share = (tokens - curve[later - 1].tokens) / (curve[later].tokens - curve[later - 1].tokens)
    rewards = {
        kind: {task: (1 - share) * old[task] + share * new for task, new in after.evaluation.rewards[kind].items() if task in old}
        for kind, old in before.evaluation.rewards.items()
        if kind in after.evaluation.rewards
    }
    name = f"{run.name} steps {before.evaluation.step} to {after.evaluation.step}"
    return Side(run, name, Evaluation(step=after.evaluation.step, rewards=rewards))
