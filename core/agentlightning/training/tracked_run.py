"""What a run tells its trackers: its settings, its evaluations task by task, and a sample of its rollouts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

from agentlightning.contracts.store import AttemptRecords, LightningStore
from agentlightning.contracts.tracker import EvaluatedTask, TrackedRollout
from agentlightning.errors import StoreError
from agentlightning.stores.messages import new_messages
from agentlightning.telemetry.logs import HIDDEN, hide_secrets
from agentlightning.training.choice import Evaluation
from agentlightning.training.message_text import message_text
from agentlightning.training.recorded import task_text
from agentlightning.types import JSON, Trajectory

TASK_LIMIT, MESSAGE_LIMIT = 500, 2000
"""Characters of a task, and of a message, that trackers show."""
SHOWN_MESSAGES = 8
"""Messages at the start of a rollout, and as many at its end, that trackers show."""
SECRET_KEYS = re.compile(r"(^|[_-])(api_?key|key|token|secret|password|passwd|credentials?|authorization)$", re.IGNORECASE)
"""Settings of plugins whose values no tracker gets."""


def without_secrets(value: JSON, key: str = "") -> JSON:
    """Return settings with `***` in place of passwords and keys. `key`: the name of the value."""
    if isinstance(value, Mapping):
        return {name: without_secrets(inner, str(name)) for name, inner in cast("Mapping[str, JSON]", value).items()}
    if isinstance(value, list):
        return [without_secrets(inner, key) for inner in cast("list[JSON]", value)]
    if not isinstance(value, str):
        return value
    return HIDDEN if SECRET_KEYS.search(key) else hide_secrets(value)


def evaluated_tasks(before: Evaluation | None, now: Evaluation, trajectories: Sequence[Trajectory]) -> list[EvaluatedTask]:
    """Return the tasks of an evaluation with their rewards. `before`: the evaluation before training; None: there was none."""
    tasks = {trajectory.task.id: trajectory.task for trajectory in trajectories}
    rewards = now.rewards
    earlier = {} if before is None else before.rewards
    return [
        EvaluatedTask(
            id=id,
            task=_cut(task_text(task), TASK_LIMIT),
            sampled_before=earlier.get("sampled", {}).get(id),
            sampled=rewards.get("sampled", {}).get(id),
            greedy_before=earlier.get("greedy", {}).get(id),
            greedy=rewards.get("greedy", {}).get(id),
        )
        for id, task in tasks.items()
    ]


async def tracked_rollouts(store: LightningStore, trajectories: Sequence[Trajectory], count: int) -> list[TrackedRollout]:
    """Return a sample of a step's rollouts, spread evenly over its groups. One whose records cannot be read is left out."""
    count = min(count, len(trajectories))
    sample: list[TrackedRollout] = []
    for trajectory in (trajectories[place * len(trajectories) // count] for place in range(count)):
        try:
            records = await store.records(trajectory.attempt_id)
        except StoreError:
            continue
        task = _cut(task_text(trajectory.task), TASK_LIMIT)
        sample.append(TrackedRollout(id=trajectory.rollout_id, task=task, reward=trajectory.reward, messages=_messages(records)))
    return sample


def _messages(records: AttemptRecords) -> tuple[Mapping[str, str], ...]:
    """The new messages of each call, and its replies. A long rollout loses its middle: its end says how it ended."""
    messages: list[Mapping[str, str]] = []
    for call in sorted(records.calls, key=lambda call: call.index):
        parts = [*(new_messages(call) or ()), *(reply.message for reply in records.completions if reply.call_id == call.id)]
        for part in parts:
            role = str(cast("dict[str, JSON]", part).get("role")) if isinstance(part, dict) else "assistant"
            messages.append({"role": role, "content": _cut(message_text(part), MESSAGE_LIMIT)})
    left_out = len(messages) - 2 * SHOWN_MESSAGES
    if left_out <= 0:
        return tuple(messages)
    note = {"role": "system", "content": f"({left_out} messages are not shown)"}
    return (*messages[:SHOWN_MESSAGES], note, *messages[-SHOWN_MESSAGES:])


def _cut(text: str, limit: int) -> str:
    """A text without its middle if it is long."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n… {len(text) - 2 * (limit // 2):,} more characters …\n{text[-(limit // 2) :]}"
