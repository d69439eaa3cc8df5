"""A recorded rollout as the reflecting model sees it: task, messages with tool calls and results, errors, notes and rewards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from agentlightning.algorithms.base import Trial
from agentlightning.capture.prompts import PROMPT, prompts_of
from agentlightning.contracts.store import AttemptRecords
from agentlightning.training.message_text import message_text
from agentlightning.training.rewards.recorded_rollout import RecordedRollout, attempt_rewards

NOTES = "Notes"
"""The key of an example's notes and errors, which also are part of its feedback."""


def example(trials: Sequence[Trial], name: str, limit: int) -> dict[str, Any] | None:
    """Return the rollout of a task with the lowest reward among those that asked for a prompt; None: none did.

    `limit`: characters of the task, of the messages, and of the feedback, each. `NOTES` has notes and errors of all these rollouts.
    """
    asked = [trial for trial in trials if trial.records is not None and name in prompts_of(trial.records)]
    if not asked:
        return None
    worst = min(asked, key=lambda trial: trial.trajectory.reward or 0.0)
    assert worst.records is not None
    return {
        "Task": shown_task(worst.trajectory.task.input, limit),
        "Messages": _messages(worst, worst.records, limit),
        "Feedback": cut(_feedback(worst, trials), limit),
        NOTES: [note for trial in asked for note in _notes(trial)],
    }


def shown_task(task: Any, limit: int) -> str | dict[str, str]:
    """Return a task as text, or each field of an object as text. The longest fields lose their middle, so that none pushes out another."""
    if not isinstance(task, dict):
        return cut(_text(task), limit)
    texts = {str(name): _text(value) for name, value in task.items()}
    longest = fitting([len(text) for text in texts.values()], limit)
    return {name: cut(text, longest) for name, text in texts.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _messages(trial: Trial, records: AttemptRecords, limit: int) -> str:
    """All messages with their roles. The longest lose their middle, so that a long prompt does not push out the replies."""
    messages: list[Any] = RecordedRollout(trial.state, records).messages
    texts = [message_text(message) for message in messages]
    longest = fitting([len(text) for text in texts], limit)
    return "\n\n".join(f"[{message.get('role')}]\n{cut(text, longest)}" for message, text in zip(messages, texts, strict=True))


def fitting(lengths: Sequence[int], limit: int) -> int:
    """Return the length to which each of several texts must be cut, so that all together have `limit` characters at most."""
    rest = limit
    for place, length in enumerate(sorted(lengths)):
        share = rest // (len(lengths) - place)
        if length > share:
            return share
        rest -= length
    return max(lengths, default=0)


def _feedback(trial: Trial, trials: Sequence[Trial]) -> str:
    """Rewards by name, notes of the agent and of a judge, and errors of tools and of the agent."""
    trajectory, records = trial.trajectory, trial.records
    lines = ["It got no reward." if trajectory.reward is None else f"Reward: {trajectory.reward:g}."]
    if len(trials) > 1:
        scored = [other.trajectory.reward for other in trials if other.trajectory.reward is not None]
        lines += [f"The {len(trials)} rollouts of this task got {', '.join(f'{reward:g}' for reward in sorted(scored))}."]
    if records is not None:
        lines += [f"{reward.name}: {reward.value:g}" for reward in attempt_rewards(records) if reward.name not in ("return", "reward")]
    return "\n".join([*lines, *_notes(trial)])


def _notes(trial: Trial) -> list[str]:
    """Notes of the agent and of a judge, and errors of tools and of the agent."""
    lines: list[str] = []
    for span in trial.records.spans if trial.records is not None else ():
        error: Any = span.attributes.get("error")
        if error:
            lines.append(f"Error in {span.name}: {error}")
        elif span.kind == "note" and PROMPT not in span.attributes:
            more = {key: value for key, value in span.attributes.items() if key != "scorer"}
            lines.append(span.name + (f" {json.dumps(more, ensure_ascii=False)}" if more else ""))
    if trial.trajectory.error:
        lines.append(f"The agent ended as {trial.trajectory.status}: {trial.trajectory.error}")
    return lines


def cut(text: str, limit: int) -> str:
    """Return the text without its middle if it is too long."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… ({len(text) - 2 * half:,} characters left out) …\n{text[-half:]}"
