"""Marks on credit and advantage functions: how a function says what it needs, with or without bound settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, Literal, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
Mark = Literal["independent", "uses_critic", "reads_rewards", "outcome_alone", "without_rewards"]


@dataclass(frozen=True, slots=True)
class Needs:
    """What an algorithm needs from the run."""

    group: bool = False
    """Several rollouts of each task."""
    critic: bool = False
    """A trainer with a value head, and `RolloutArrays.values`."""
    rewards: bool = False
    """The rewards of single steps, besides the returns."""
    teacher: bool = False
    """A model that scores the sampled tokens."""
    answers: bool = False
    """A model that answers the calls of training rollouts."""

    def __or__(self, other: Needs) -> Needs:
        return Needs(*(mine or theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


def independent(function: F) -> F:
    """Mark an advantage that compares no rollouts, so that a group of one is enough. An unmarked advantage compares."""
    return _marked(function, "independent")


def uses_critic(function: F) -> F:
    """Mark an advantage or a credit that reads `RolloutArrays.values`."""
    return _marked(function, "uses_critic")


def reads_rewards(function: F) -> F:
    """Mark an advantage that reads the rewards of steps itself, so that they count whatever the credit."""
    return _marked(function, "reads_rewards")


def outcome_alone(function: F) -> F:
    """Mark a credit that never reads the rewards of steps."""
    return _marked(function, "outcome_alone")


def without_rewards(function: F) -> F:
    """Mark an advantage that reads no reward, so that rollouts without one are trained too."""
    return _marked(function, "without_rewards")


def marks_of(function: Callable[..., Any]) -> frozenset[Mark]:
    """The marks of a function."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "marks", frozenset[Mark]())


def needs_of_credit(credit: Callable[..., Any]) -> Needs:
    """A credit compares nothing."""
    return Needs(critic="uses_critic" in marks_of(credit))


def needs_of_advantage(advantage: Callable[..., Any]) -> Needs:
    """An advantage compares the rollouts of a group unless it is marked `independent`."""
    marks = marks_of(advantage)
    return Needs(group="independent" not in marks, critic="uses_critic" in marks, rewards="reads_rewards" in marks)


def _marked(function: F, mark: Mark) -> F:
    function.marks = marks_of(function) | {mark}  # type: ignore[attr-defined]
    return function
