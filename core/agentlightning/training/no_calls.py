"""Rollouts without a model call: nothing of the policy is in their rewards, so they are excluded, and reported with the likely cause."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from agentlightning.rl.trajectory.joins import NEVER_ARRIVED
from agentlightning.types import Trajectory

NO_CALL = "without a model call"
"""Reason of a rollout that is excluded."""


def made_no_call(trajectory: Trajectory) -> bool:
    """Return whether the agent succeeded, and no request of it reached the gateway."""
    return trajectory.status == "succeeded" and not trajectory.transitions and not sum(trajectory.calls.values())


def exclude_without_calls(trajectory: Trajectory) -> Trajectory:
    """Return the trajectory, without its reward if it made no model call."""
    return replace(trajectory, reward=None, excluded=NO_CALL) if made_no_call(trajectory) else trajectory


def no_calls_report(trajectories: Sequence[Trajectory]) -> str | None:
    """Return how many rollouts made no model call, and the likely cause of the first one; None: every rollout made one."""
    silent = [trajectory for trajectory in trajectories if made_no_call(trajectory)]
    if not silent:
        return None
    return f"{len(silent)} of {len(trajectories)} rollouts made no model call. The likely cause: {_cause(silent[0], trajectories)}"


def _cause(silent: Trajectory, trajectories: Sequence[Trajectory]) -> str:
    astray = next((text for text in silent.diagnostics if NEVER_ARRIVED in text), None)
    if astray is not None:
        return f"{astray}."
    if any(other.task.id == silent.task.id and sum(other.calls.values()) for other in trajectories):
        return (
            "a cache answered, because other rollouts of this task called the model. Turn off the cache of your framework (DSPy, litellm, "
            "and LangChain have one)."
        )
    return (
        "the agent asked no model, a cache answered, its client is not routed to the gateway, or it called outside the rollout "
        "(see agl.attach). Give the client base_url=llm.base_url and api_key=llm.api_key, or install an adapter and name the model in "
        "`models`."
    )
