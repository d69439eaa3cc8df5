"""Advantages: each return compared with others; one function a file.

Each takes `RolloutArrays` and the returns (transitions,) that credit made, and gives float64 advantages (transitions,) or (tokens,): NaN
where the return is, which is not trained. Those that compare within a group (`compares_groups`) take their baseline over rollouts, on the
full group of scored rollouts, before anything is dropped; a rollout that never called the model counts in it (law 5). It never depends on
its own rollout's actions, but for the group means that some were published with. A group of one, and a group that nothing tells apart, have
advantage zero (law 7).

Where credit differs by turn A_t = G_t - b_t: b_t is the mean, over the other rollouts in which the same agent has a turn t, of their return
there, and where none has one, the mean of the others' first returns G_0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from agentlightning.rl.arrays import Doubles

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Needs:
    """What an advantage or a credit needs."""

    group: bool = False
    """Several rollouts of a task."""
    critic: bool = False
    """A trainer with a value head, and `RolloutArrays.values`."""
    rewards: bool = False
    """The rewards of steps themselves, besides the returns."""

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.group or other.group, self.critic or other.critic, self.rewards or other.rewards)


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """Advantages, and what a critic should have said."""

    advantage: Doubles
    """(transitions,) or (tokens,)"""
    target: Doubles
    """(tokens,) the return that the critic learns; NaN where it learns none."""


def compares_groups(function: F) -> F:
    """Marks an advantage that is zero for a group of one."""
    function.needs = needs_of(function) | Needs(group=True)  # type: ignore[attr-defined]
    return function


def uses_critic(function: F) -> F:
    """Marks an advantage or a credit that reads `RolloutArrays.values`."""
    function.needs = needs_of(function) | Needs(critic=True)  # type: ignore[attr-defined]
    return function


def reads_rewards(function: F) -> F:
    """Marks an advantage that reads the rewards of steps itself, so that they count whatever the credit."""
    function.needs = needs_of(function) | Needs(rewards=True)  # type: ignore[attr-defined]
    return function


def needs_of(function: Callable[..., Any]) -> Needs:
    """What a function, with or without bound settings, was marked with."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "needs", Needs())
