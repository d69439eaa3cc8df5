"""Advantages: each return compared with others; one function a file.

Each takes `RolloutArrays` and the returns (transitions,) of credit, and returns float64 advantages (transitions,) or (tokens,), or an
`Estimate`; NaN where the return is NaN, and that is not trained. Advantages that compare within a group take their baseline over rollouts,
on the full group of scored rollouts, before anything is dropped; a rollout that never called the model counts in it (law 5). The baseline
never depends on its own rollout's actions, except for the group means of some published formulas. A group of one, and a zero-variance
group, have advantage zero (law 7). An advantage that compares nothing is marked `rl.marks.independent`.

Where credit differs by turn A_t = G_t - b_t. b_t is the mean return, at the same agent's turn t, of the other rollouts that have one; if
none has one, it is the mean of the others' first returns G_0.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentlightning.types import Doubles


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """Advantages, and the targets of a critic."""

    advantage: Doubles
    """(transitions,) or (tokens,)"""
    target: Doubles
    """(tokens,) the return that the critic learns; NaN where it learns none."""
