"""The rollouts of a production replay and their states, and which of them a step takes."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import itemgetter

ALONE = "with no other rollout of their task to compare with"
NEXT_STEP = "waiting for the next step"
UNSCORED = "without a reward so far"


class State(Enum):
    """Where a production rollout stands.

    A rollout begins as UNSCORED and stays so until its reward arrives. It then becomes READY, BASELINE or EXCLUDED. A step turns READY
    and BASELINE rollouts into TAKEN, or EXCLUDED if their rewards contradict each other by then. EXCLUDED and TAKEN are final.
    """

    UNSCORED = "ended without a reward so far"
    READY = "scored, with tokens to train"
    BASELINE = "scored, with nothing to train: it counts in the baseline of its group (law 5)"
    EXCLUDED = "unusable, by a reason"
    TAKEN = "used by a step of this run, or trained into the weights before"


@dataclass(slots=True)
class ReplayRollout:
    """A production rollout that has ended."""

    id: str
    task: str
    """The id of its task."""
    seq: int = 0
    """The store's sequence number of its end: the order in which steps take rollouts."""
    ended: float = 0.0
    """When it ended, seconds since the epoch."""
    state: State = State.UNSCORED
    reason: str = ""
    """Why nothing of it is trained; while EXCLUDED or BASELINE."""


class ReplayTable:
    """Every rollout that was read from the store, and its state."""

    def __init__(self, trained: Iterable[str], *, compares: bool) -> None:
        """`trained`: ids of rollouts that count as taken. `compares`: the algorithm compares the rollouts of a task."""
        self._rollouts = {rollout_id: ReplayRollout(rollout_id, "", state=State.TAKEN) for rollout_id in trained}
        self._usable: dict[str, list[ReplayRollout]] = {}
        """The READY and BASELINE rollouts, by task, in the order of their end."""
        self._compares = compares
        self._least = 2 if compares else 1
        """Rollouts of a group that can be trained."""

    def __contains__(self, rollout_id: str) -> bool:
        return rollout_id in self._rollouts

    def add(self, rollout: ReplayRollout) -> None:
        """Add an UNSCORED rollout."""
        self._rollouts[rollout.id] = rollout

    def settle(self, rollout: ReplayRollout, state: State, reason: str = "") -> None:
        """Give a rollout its next state."""
        rollout.state, rollout.reason = state, reason
        if state in (State.READY, State.BASELINE):
            insort(self._usable.setdefault(rollout.task, []), rollout, key=lambda member: member.seq)

    def groups(self, size: int, task: str | None = None) -> int:
        """Count the full groups of `size` ready rollouts, of all tasks or of one."""
        return sum(len(_ready(members)) // size for members in self._of(task))

    def trainable(self, task: str | None = None) -> bool:
        """Return whether a last step could train on rollouts, of any task or of one."""
        return any(_ready(members) and len(members) >= self._least for members in self._of(task))

    def take(self, count: int, size: int, *, full_only: bool) -> list[list[ReplayRollout]]:
        """Take the rollouts of a step, by task: those that `choose` returns, and the baseline rollouts of their task, in order."""
        groups: list[list[ReplayRollout]] = []
        for task, ready in choose(self._usable, count, size, least=self._least, full_only=full_only).items():
            members = self._usable.pop(task)
            group = [*ready, *(member for member in members if member.state is State.BASELINE)]
            for rollout in group:
                self.settle(rollout, State.TAKEN)
            if rest := _ready(members):
                self._usable[task] = rest
            groups.append(sorted(group, key=lambda rollout: rollout.seq))
        return groups

    def _of(self, task: str | None) -> Iterable[list[ReplayRollout]]:
        return self._usable.values() if task is None else [self._usable.get(task, [])]

    def counts(self) -> dict[str, float]:
        """Count the rollouts that no step has taken, under the names of `metrics.jsonl`."""
        states = Counter(rollout.state for rollout in self._rollouts.values())
        return {
            "replay.waiting": float(states[State.READY]),
            "replay.unscored": float(states[State.UNSCORED]),
            "replay.excluded": float(states[State.EXCLUDED] + states[State.BASELINE]),
        }

    def account(self) -> str:
        """Describe the rollouts that no step has taken, by reason."""
        reasons: Counter[str] = Counter()
        for rollout in self._rollouts.values():
            if rollout.state is State.READY:
                reasons[ALONE if self._compares else NEXT_STEP] += 1
            elif rollout.state is State.UNSCORED:
                reasons[UNSCORED] += 1
            elif rollout.state is not State.TAKEN:
                reasons[rollout.reason] += 1
        return "; ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())


def choose(
    usable: Mapping[str, Sequence[ReplayRollout]], count: int, size: int, *, least: int, full_only: bool
) -> dict[str, list[ReplayRollout]]:
    """Choose the ready rollouts of a step, by task: the `count` groups of `size` rollouts that were full first.

    Unless `full_only`, the rests of tasks fill the missing groups, the oldest first. A rest and its task's baseline rollouts must be at
    least `least`.
    """
    full: list[tuple[int, str, list[ReplayRollout]]] = []
    rests: list[tuple[int, str, list[ReplayRollout]]] = []
    for task, members in usable.items():
        ready = _ready(members)
        baseline = len(members) - len(ready)
        groups = [ready[start : start + size] for start in range(0, len(ready), size)]
        full += [(group[-1].seq, task, group) for group in groups if len(group) == size]
        rests += [(group[0].seq, task, group) for group in groups if len(group) < size and len(group) + baseline >= least]
    chosen = sorted(full, key=itemgetter(0, 1))[:count]
    if not full_only:
        chosen += sorted(rests, key=itemgetter(0, 1))[: count - len(chosen)]
    by_task: dict[str, list[ReplayRollout]] = {}
    for _, task, group in chosen:
        by_task.setdefault(task, []).extend(group)
    return by_task


def _ready(members: Sequence[ReplayRollout]) -> list[ReplayRollout]:
    return [member for member in members if member.state is State.READY]
