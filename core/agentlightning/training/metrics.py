"""Metrics of a step, and `metrics.jsonl`: one line for each step, and never a lost line.

A line has `step` (finished steps at that time; 0: before training) and numbers. Other parts read these:

- `reward`: mean reward of the step's training rollouts; `reward_spread`: standard deviation of the groups' mean rewards;
- `excluded_rollouts`: rollouts that have no part in training, nor in `reward`, because they made no model call (`collection.no_calls`);
- `untrained_reason`: the reason of most replies, in a step that trained none;
- `demonstrated_reward`: mean reward of rollouts with demonstrations in place of the policy's replies;
- `eval.sampled`, `eval.greedy`: mean reward on the eval tasks, at the steps with an evaluation;
- `eval.greedy.change`, `eval.greedy.change_low`, `eval.greedy.change_high`, and the same of `eval.sampled`: the change from before training
  with its 95% interval, paired by task, if at least six tasks changed;
- `eval.sampled.no_calls`, `eval.greedy.no_calls`: rollouts of an evaluation that made no model call;
- `context.bridged`, `context.first`, `context.rewritten`, `context.edited`, ...: completed model calls by the origin of their prompts, as
  `Call.context` names it; `broken_calls`: replies with a tool call that cannot be read;
- `reward_min`, `reward_max`: lowest and highest reward; `zero_variance_reward`: mean reward of groups in which all rewards are equal;
- `requests.completed`, `requests.refused`, ...: model calls by status; `requests.other_attempts`: those of attempts that did not win;
- `truncated_fraction`: share of the replies that end at a token limit; `truncated_reward`: mean reward of rollouts with one;
- `agent_fraction`: share of the sampled tokens by the agents in training, if `agents` names some;
- `tool_offers`: completed calls that offered tools; `tool_uses`: those that a tool call answered;
- `judge.asked`, `judge.cached`, `judge.unscored`: questions to the judge, those whose judgement was known, and rollouts without a score;
- `diagnosis`: the cause why the run does not learn (`docs/not-learning.md`);
- `tokens_per_second`: sampled tokens in a second of rollouts; `trained_tokens`; `seconds`: of the complete step.

With several policies, the metrics of one have its name: `writer/loss`, `writer/reward` (of the rollouts in which it acted),
`writer/policy_version`, ... Of those, `mismatch_abs` and the like are also there without a name, with the largest value, and
`policy_version` with the sum.

A number that was not measured is absent. NaN and infinity become null.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.tracker import RunEnd, TrackedRun, Tracker, TrackerSettings
from agentlightning.errors import RunError
from agentlightning.files import disk_errors, write_file
from agentlightning.rl.trajectory.step_rewards import STEP_SIGNAL
from agentlightning.training.run_state import Learned
from agentlightning.types import JSON, Trajectory

log = logging.getLogger("agentlightning")
NAME = "metrics.jsonl"


def step_metrics(trajectories: Sequence[Trajectory], batch: Batch) -> dict[str, Any]:
    """Return the metrics of a step's trajectories. Rollouts with demonstrations do not count in `reward`, but in `demonstrated_reward`."""
    transitions = [transition for trajectory in trajectories for transition in trajectory.transitions]
    row: dict[str, Any] = {
        "rollouts": len(trajectories),
        "unscored": sum(trajectory.reward is None and trajectory.excluded is None for trajectory in trajectories),
        "failed": sum(trajectory.status != "succeeded" for trajectory in trajectories),
        "transitions": len(transitions),
        "sampled_tokens": sum(len(transition.response_ids) for transition in transitions if not transition.demonstrated),
        "trained_tokens": batch.trained_tokens,
        "trained_fraction": batch.stats.trained_fraction,
        "groups": batch.stats.groups,
        "zero_variance_groups": batch.stats.zero_variance_groups,
        **_reward_metrics(trajectories),
    }
    if not batch.trained_tokens and batch.untrained:
        row["untrained_reason"] = Counter(untrained.reason for untrained in batch.untrained).most_common(1)[0][0]
    excluded = sum(trajectory.excluded is not None for trajectory in trajectories)
    row |= {"excluded_rollouts": excluded} if excluded else {}
    signals = {reward.id: reward.name for transition in transitions for reward in transition.rewards if reward.source == STEP_SIGNAL}
    row |= {f"step_signals.{name}": count for name, count in sorted(Counter(signals.values()).items())}
    requests, contexts = Counter[str](), Counter[str]()
    for trajectory in trajectories:
        requests.update(request_counts(trajectory))
        contexts.update(trajectory.contexts)
    row |= {f"requests.{status}": count for status, count in sorted(requests.items())}
    broken = sum(trajectory.broken_calls for trajectory in trajectories)
    return row | _context_metrics(contexts) | ({"broken_calls": broken} if broken else {})


def request_counts(trajectory: Trajectory) -> dict[str, int]:
    """Requests by status; under `other_attempts`, those of failed and lost attempts. The sum is the number of requests of the rollout."""
    return trajectory.calls | ({"other_attempts": trajectory.other_calls} if trajectory.other_calls else {})


def _context_metrics(contexts: Mapping[str, int]) -> dict[str, int]:
    """Model calls by the origin of their prompts, without what comes after a colon: `context.rewritten`."""
    counts = Counter[str]()
    for context, count in contexts.items():
        counts[context.partition(":")[0].replace(" ", "_")] += count
    return {f"context.{name}": count for name, count in sorted(counts.items())}


def _reward_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    rewards: dict[str, list[float]] = {}
    """By group."""
    demonstrated: list[float] = []
    demonstrated_tokens = 0
    for trajectory in trajectories:
        demonstrations = [len(transition.response_ids) for transition in trajectory.transitions if transition.demonstrated]
        demonstrated_tokens += sum(demonstrations)
        if trajectory.reward is not None and demonstrations:
            demonstrated.append(trajectory.reward)
        elif trajectory.reward is not None:
            rewards.setdefault(trajectory.group, []).append(trajectory.reward)
    row: dict[str, float] = {}
    if rewards:
        row["reward"] = float(np.mean([reward for group in rewards.values() for reward in group]))
        row["reward_spread"] = float(np.std([np.mean(group) for group in rewards.values()]))
    if demonstrated:
        row |= {"demonstrated_reward": float(np.mean(demonstrated)), "demonstrated_tokens": demonstrated_tokens}
    return row


def contributions(
    trajectories: Sequence[Trajectory], returns: Sequence[Any], advantages: Sequence[Any], batch: Batch
) -> dict[str, Learned]:
    """Return the contribution of each rollout to a step, by id. Every sampled token is trained, or excluded by a named reason."""
    excluded: dict[str, Counter[str]] = {}
    for untrained in batch.untrained:
        excluded.setdefault(untrained.rollout_id, Counter())[untrained.reason] += untrained.tokens
    counts = np.bincount(batch.transition_rollout[batch.transition[batch.trained]], minlength=len(batch.rollout_ids))
    trained = dict(zip(batch.rollout_ids, counts.tolist(), strict=True))
    return {
        trajectory.rollout_id: Learned(
            returns=tuple(_finite(value) for value in credit),
            advantages=tuple(
                _finite(value) if transition.trained else None
                for transition, value in zip(trajectory.transitions, _by_transition(trajectory, advantage), strict=True)
            ),
            trained=trained.get(trajectory.rollout_id, 0),
            excluded=dict(excluded.get(trajectory.rollout_id, {})),
        )
        for trajectory, credit, advantage in zip(trajectories, returns, advantages, strict=True)
    }


def _by_transition(trajectory: Trajectory, values: Any) -> Any:
    """(transitions,) from one number for each transition, or the means of one number for each token."""
    tokens = [len(transition.response_ids) for transition in trajectory.transitions]
    if len(values) == len(tokens):
        return values
    return [float(np.mean(part)) if len(part) else np.nan for part in np.split(values, np.cumsum(tokens)[:-1])]


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


class JSONLines(Tracker):
    """Appends metrics to `metrics.jsonl` in a run folder. A line is on the disk when `log` returns."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / NAME
        if self.path.exists():
            _, torn = _split(self.path)
            if torn:  # a line appended to half a line would lose both
                cut_metrics(self.path.parent, after=None)
        with disk_errors("write", self.path):
            self._file = self.path.open("ab")

    @classmethod
    def create(cls, run: TrackedRun, settings: TrackerSettings) -> JSONLines:
        return cls(run.folder)

    def log(self, metrics: Mapping[str, JSON]) -> None:
        with disk_errors("write", self.path):
            self._file.write(_line(metrics) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self, end: RunEnd) -> None:
        self._file.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl`. A last line that a crash cut off is a warning. Raises `RunError` for another damaged line."""
    path = Path(folder) / NAME
    if not path.exists():
        return []
    lines, torn = _split(path)
    if torn:
        log.warning("%s: ignoring the last line, which a crash cut off (%d bytes).", path, len(torn))
    return [_row(path, number, line) for number, line in enumerate(lines, 1)]


def cut_metrics(folder: Path, *, after: int | None) -> int:
    """Move the lines of steps beyond `after`, and a last line that was cut off, to `metrics.jsonl.bak`. Return how many lines moved.

    A resumed run repeats those steps. None: only a cut-off line moves.
    """
    path = Path(folder) / NAME
    if not path.exists():
        return 0
    lines, torn = _split(path)
    beyond = [after is not None and _row(path, number, line).get("step", 0) > after for number, line in enumerate(lines, 1)]
    stay = [line for line, gone in zip(lines, beyond, strict=True) if not gone]
    gone = [line for line, gone in zip(lines, beyond, strict=True) if gone] + ([torn] if torn else [])
    if gone:
        backup = path.with_name(NAME + ".bak")
        with disk_errors("write", backup), backup.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in gone))
            file.flush()
            os.fsync(file.fileno())
        write_file(path, b"".join(line + b"\n" for line in stay))
    return len(gone)


def _split(path: Path) -> tuple[list[bytes], bytes]:
    """Return the complete lines, and the bytes after the last line end."""
    with disk_errors("read", path):
        *lines, torn = path.read_bytes().split(b"\n")
    return lines, torn


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise RunError(f"{path}, line {number}, is damaged: {error}. Remove that line to continue.") from error


def plain_metrics(metrics: Mapping[str, JSON]) -> dict[str, JSON]:
    """Return a row as `read_metrics` would: numbers of Python, and None for NaN and infinity."""
    return msgspec.json.decode(_line(metrics), type=dict[str, Any])


def _line(metrics: Mapping[str, JSON]) -> bytes:
    return msgspec.json.encode(metrics, enc_hook=_number)


def _number(value: Any) -> Any:
    """Convert a number of numpy or torch."""
    item = getattr(value, "item", None)
    if item is None:
        raise TypeError(f"A metric is a {type(value).__name__}. Log numbers and texts only.")
    return item()
