"""Why a run does not learn: one likely cause with its numbers and a remedy, from the metrics of the steps so far.

`diagnose` is pure: the same rows give the same diagnosis. A run that learns has none. `docs/not-learning.md` explains each cause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentlightning.training.causes_of_harm import HARM
from agentlightning.training.causes_of_no_progress import NO_PROGRESS
from agentlightning.training.diagnosis import Diagnosis
from agentlightning.training.step_history import Facts, Steps

REPLY_CAUSES = frozenset({"never_scores", "all_wrong", "tools_never_called", "truncated", "collapse"})
"""Causes that two of the replies make visible."""
ANNOUNCED = frozenset({"mismatch", "history_rewritten"})
"""Causes that `StepChecks.notices` announces."""


def diagnose(rows: Sequence[Mapping[str, Any]], facts: Facts) -> Diagnosis | None:
    """Return the likeliest cause; None: the run learns, or it is too early to tell. `rows` are the lines of `metrics.jsonl` so far."""
    steps = Steps(rows, facts)
    for cause in (*HARM, *(() if steps.learns or not facts.samples else NO_PROGRESS)):
        diagnosis = cause(steps)
        if diagnosis is not None:
            return diagnosis
    return None
