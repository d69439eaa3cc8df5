"""One rollout with its account, and the rollouts that a run replayed from another store."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.records.accounts import Account, account
from agentlightning.records.source import RecordsSource
from agentlightning.training.recorded import RunRollout, read_trajectory
from agentlightning.training.run_state import Learned


@dataclass(frozen=True, slots=True, repr=False)
class Shown(RunRollout):
    """One rollout with everything about it."""

    account: Account


def as_shown(source: RecordsSource, state: RolloutState, attempts: tuple[AttemptRecords, ...], learned: Learned | None) -> Shown:
    """Return a rollout with its trajectory and account."""
    built, problem = read_trajectory(state, attempts, source.settings)
    return Shown(state, attempts, built, problem, learned, account(state, attempts, built, learned))


def with_step(state: RolloutState, step: int) -> RolloutState:
    """Return the state of a replayed rollout with the finished step that trained it. Its own is that of the run that sampled it, if any."""
    started = step - 1 if state.rollout.mode == "train" else step  # as `finished_step` counts them
    return replace(state, rollout=replace(state.rollout, step=started))
