"""The records of a run as a table of pandas or polars."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from agentlightning.errors import MissingExtra
from agentlightning.training.recorded import RunRollout, finished_step, question_of
from agentlightning.types import is_greedy


def frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return a DataFrame of pandas, or of polars where pandas is not installed. A value that a row lacks is missing."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    for library, options in (("pandas", {}), ("polars", {"strict": False})):
        try:
            return importlib.import_module(library).DataFrame(columns, **options)
        except ModuleNotFoundError:
            continue
    raise MissingExtra("A frame needs pandas or polars, and neither is installed. Run: pip install pandas")


def rollout_row(recorded: RunRollout) -> dict[str, Any]:
    """Return the row of a rollout."""
    state, rollout = recorded.state, recorded.state.rollout
    replies = [completion for records in recorded.attempts for completion in records.completions]
    return {
        "id": rollout.id,
        "step": finished_step(rollout),
        "mode": rollout.mode,
        "greedy": None if rollout.sampling is None else is_greedy(rollout.sampling.temperature),
        "task_id": rollout.task.id,
        "task": question_of(rollout.task),
        "group": rollout.group,
        "index": rollout.index,
        "status": state.status,
        "reward": recorded.reward,
        "calls": sum(len(records.calls) for records in recorded.attempts),
        "sampled_tokens": sum(len(reply.response_ids) for reply in replies if not reply.demonstrated),
        "trained_tokens": 0 if recorded.learned is None else recorded.learned.trained,
        "seconds": recorded.seconds,
        "error": next((attempt.error for attempt in reversed(state.attempts) if attempt.error), None),
    }
