"""Accounts of rollouts: every request has a status, every sampled token was trained or left out by a named reason.

What does not add up is shown as `unaccounted for`, never spread over the other reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.rl.trajectory.joins import superseded
from agentlightning.training.run_state import Learned
from agentlightning.types import CallStatus, Mode, Trajectory

UNACCOUNTED = "unaccounted for"
NOT_TRAINED: dict[Mode, str] = {
    "train": "no finished training step took it",
    "eval": "evaluation rollout",
    "production": "recorded outside a training run",
}
"""Why tokens were not trained where nothing else is the reason."""
NO_TRANSITION: dict[CallStatus, str] = {"cancelled": "cancelled call", "error": "error"}
"""Why the tokens of a call belong to no transition, by its status."""
SUPERSEDED = "superseded call"


@dataclass(frozen=True, slots=True)
class Account:
    """Of one rollout, or the sum over many."""

    requests: int = 0
    statuses: Counter[str] = field(default_factory=Counter[str])
    """Requests by what became of them; their sum is `requests`."""
    sampled: int = 0
    """Tokens of all replies, over all attempts."""
    demonstrated: int = 0
    """Those of them that nobody sampled."""
    trained: int = 0
    left_out: Counter[str] = field(default_factory=Counter[str])
    """Tokens by reason; `trained` and their sum are `sampled`."""
    contexts: Counter[str] = field(default_factory=Counter[str])
    """Completed requests by the origin of their prompts (`Call.context`)."""
    broken_calls: int = 0
    """Replies with a tool call that cannot be read."""

    def __add__(self, other: Account) -> Account:
        return Account(
            self.requests + other.requests,
            self.statuses + other.statuses,
            self.sampled + other.sampled,
            self.demonstrated + other.demonstrated,
            self.trained + other.trained,
            self.left_out + other.left_out,
            self.contexts + other.contexts,
            self.broken_calls + other.broken_calls,
        )


def account(state: RolloutState, attempts: Sequence[AttemptRecords], trajectory: Trajectory | None, learned: Learned | None) -> Account:
    """Of one rollout. `trajectory` is that of its winning attempt; `learned` what a training step wrote about it."""
    accounts: list[Account] = []
    for records in attempts:
        wins = trajectory is not None and records.attempt.id == trajectory.attempt_id
        accounts.append(_attempt_account(state.rollout.mode, records, trajectory if wins else None, learned))
    return total(accounts)


def _attempt_account(mode: Mode, records: AttemptRecords, trajectory: Trajectory | None, learned: Learned | None) -> Account:
    """Of one attempt. `trajectory`: None unless the attempt is the winning one."""
    replaced = superseded(records.calls)
    sampled = sum(len(completion.response_ids) for completion in records.completions)
    trained, left_out = 0, _dropped(records, replaced)
    if trajectory is None or (records.attempt.status != "succeeded" and learned is None and mode == "train"):
        left_out = Counter({f"attempt {records.attempt.status.replace('_', ' ')}": sampled})
    elif learned is not None:
        trained = learned.trained
        left_out.update(learned.excluded)
    elif mode != "train":
        left_out = Counter({NOT_TRAINED[mode]: sampled})
    else:
        for transition in trajectory.transitions:
            reason = NOT_TRAINED["train"] if transition.trained else transition.reason or UNACCOUNTED
            left_out[reason] += len(transition.response_ids)
    left_out[UNACCOUNTED] += sampled - trained - left_out.total()
    return Account(
        requests=len(records.calls),
        statuses=Counter("superseded by a retry" if call.id in replaced else call.status for call in records.calls),
        sampled=sampled,
        demonstrated=sum(len(completion.response_ids) for completion in records.completions if completion.demonstrated),
        trained=trained,
        left_out=left_out,
        contexts=Counter(call.context for call in records.calls if call.status == "completed" and call.context is not None),
        broken_calls=sum(completion.problem is not None for completion in records.completions),
    )


def _dropped(records: AttemptRecords, replaced: Collection[str]) -> Counter[str]:
    """Sampled tokens that belong to no transition, by what became of their call."""
    why = {call.id: SUPERSEDED if call.id in replaced else NO_TRANSITION.get(call.status) for call in records.calls}
    dropped: Counter[str] = Counter()
    for completion in records.completions:
        reason = why.get(completion.call_id)
        if reason is not None:
            dropped[reason] += len(completion.response_ids)
    return dropped


def total(accounts: Iterable[Account]) -> Account:
    return sum(accounts, Account())
