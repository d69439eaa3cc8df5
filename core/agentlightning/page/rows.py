"""One line about a rollout, for lists."""

from __future__ import annotations

from typing import Any, cast

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.page.library import Source
from agentlightning.records.accounts import NOT_TRAINED
from agentlightning.records.shown import Shown, as_shown
from agentlightning.training.recorded import finished_step, question_of
from agentlightning.training.run_state import Learned
from agentlightning.types import JSON, Completion, Rollout, Task, Transition, is_greedy

START = 200
"""Characters of a task in a list."""


async def read_rollout(source: Source, rollout_id: str) -> Shown:
    """Read one rollout with its trajectory and what it contributed."""
    return build(source, *await source.read(rollout_id))


def build(source: Source, state: RolloutState, attempts: tuple[AttemptRecords, ...]) -> Shown:
    """Build one rollout from its records."""
    return as_shown(source.records, state, attempts, source.contributions.of(state.rollout))


def row(shown: Shown) -> dict[str, JSON]:
    """The line of a rollout."""
    rollout, trajectory, account = shown.state.rollout, shown.trajectory, shown.account
    completions = [completion for records in shown.attempts for completion in records.completions]
    return {
        "id": rollout.id,
        "task": rollout.task.id,
        "start": start_of(rollout.task),
        "mode": rollout.mode,
        "sampling": sampling_kind(rollout),
        "step": finished_step(rollout),
        "group": rollout.group,
        "index": rollout.index,
        "status": shown.state.status,
        "error": next((attempt.error for attempt in reversed(shown.state.attempts) if attempt.error), None),
        "attempts": len(shown.state.attempts),
        "reward": None if trajectory is None else trajectory.reward,
        "advantage": mean_advantage(shown),
        "calls": account.requests,
        "tools": sum(len(tool_calls(completion)) for completion in completions),
        "tokens": account.sampled,
        "trained": account.trained,
        "excluded": [[reason, count] for reason, count in account.left_out.most_common() if count],
        "reason": None if account.trained else _reason(shown),
        "seconds": shown.seconds,
        "created": rollout.created,
    }


def start_of(task: Task) -> str:
    """The first words of what a task asks."""
    text = question_of(task)
    return text if len(text) <= START else f"{text[:START]}…"


def sampling_kind(rollout: Rollout) -> str:
    """How its replies are sampled: `sampled`, `greedy`, or `as asked`."""
    if rollout.sampling is None:
        return "as asked"
    return "greedy" if is_greedy(rollout.sampling.temperature) else "sampled"


def mean_advantage(shown: Shown) -> float | None:
    """The mean advantage of its trained replies; None: nothing was trained."""
    transitions = () if shown.trajectory is None else shown.trajectory.transitions
    values = [value for transition in transitions if (value := advantage_of(shown.learned, transition)) is not None]
    return sum(values) / len(values) if values else None


def advantage_of(learned: Learned | None, transition: Transition) -> float | None:
    """The advantage that a reply was trained with; None: it was not trained."""
    if learned is None or not learned.trained or not transition.trained or transition.index >= len(learned.advantages):
        return None
    return learned.advantages[transition.index]


def tool_calls(completion: Completion) -> list[dict[str, Any]]:
    """The tool calls of a reply."""
    return cast("list[dict[str, Any]]", fields_of(completion.message).get("tool_calls") or [])


def fields_of(message: JSON) -> dict[str, Any]:
    """The fields of a message; none if it is a text."""
    return cast("dict[str, Any]", message) if isinstance(message, dict) else {}


def _reason(shown: Shown) -> str | None:
    """Why nothing of a rollout was trained; None: it has not ended."""
    if shown.account.left_out:
        reason, count = shown.account.left_out.most_common(1)[0]
        if count:
            return reason
    if shown.state.status in ("queued", "running"):
        return None
    return NOT_TRAINED[shown.state.rollout.mode] if shown.trajectory is not None else shown.problem
