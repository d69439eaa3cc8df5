"""The learning rate over the steps of a run."""

from __future__ import annotations

import math

from agentlightning.errors import ConfigError


def learning_rate(lr: float, schedule: str, warmup: int, total: int | None, step: int) -> float:
    """Of a step counted from 0: linear from lr/(warmup+1) over `warmup` steps, then constant, or to 0 at `total`."""
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if schedule == "constant" or total is None:
        return lr
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return lr * (1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)


def check_schedule(schedule: str, warmup: int, total: int | None) -> None:
    """Raise `ConfigError` for a schedule without a step after its warm-up. `total` is None until the run sets it."""
    if schedule != "constant" and total is not None and total <= warmup:
        raise ConfigError(
            f"trainer.total_steps is {total}, but trainer.warmup_steps is {warmup}. Schedule {schedule!r} needs more total steps than "
            "warm-up steps."
        )
