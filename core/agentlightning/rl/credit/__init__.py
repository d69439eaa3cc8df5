"""Credit: how much of an attempt's return each of its transitions earned; one function a file.

Each takes `RolloutArrays` and gives a float64 array (transitions,): NaN throughout a rollout that was never scored, and NaN at a transition
that earns no credit and is not to be trained. With R the outcome, t the calls of the attempt in order and r_t the rewards of call t's own
spans (each counted once). The choices of one call (`n > 1`) stand beside each other: a choice earns its own rewards and what comes after
the call, and what came before earns those of all choices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def outcome_alone(function: F) -> F:
    """Marks a credit that never looks at the rewards of spans."""
    function.outcome_alone = True  # type: ignore[attr-defined]
    return function


def is_outcome_alone(function: Callable[..., Any]) -> bool:
    """Whether a credit, with or without bound settings, was marked so."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "outcome_alone", False)
