"""Whether a failed attempt is worth another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentlightning.errors import RewardError
from agentlightning.types import Attempt, AttemptStatus, Call

NOTE = "\nNot tried again: "
"""Between the error of an attempt and the reason why it was the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How an attempt failed."""

    status: AttemptStatus
    text: str | None
    """The error with its place, as the attempt keeps it."""
    error: BaseException | None
    """What the agent raised."""
    calls: Sequence[Call]
    """The attempt's model calls."""
    earlier: Sequence[Attempt] = ()
    """The rollout's attempts before it."""

    @property
    def infrastructure(self) -> bool:
        """Whether a model call failed in the engine or the gateway: then the agent is not to blame."""
        retried = {call.supersedes for call in self.calls}
        return any(call.status == "error" and call.id not in retried for call in self.calls)


def why_not_again(failure: Failure) -> str | None:
    """Return why another attempt would fail in the same way. None: it may succeed."""
    if failure.infrastructure or any(isinstance(error, ConnectionError | TimeoutError) for error in _chain(failure.error)):
        return None
    if failure.calls and failure.calls[-1].status == "refused":
        return "the gateway refused its last model call, and would refuse it again"
    if _of_wrong_type(failure.error):
        return "a reward of this type stays wrong"
    if failure.status == "failed" and failure.earlier and failure.earlier[-1].error == failure.text:
        return "the attempt before it ended with the same error at the same place"
    return None


def _of_wrong_type(error: BaseException | None) -> bool:
    """Whether a reward cannot be converted to a number at all. (NaN, or the output of a program, may change.)"""
    cause = error.__cause__ if isinstance(error, RewardError) else None
    return cause is not None and not isinstance(cause, RewardError | OSError)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those it came from."""
    passed = set[int]()
    while error is not None and id(error) not in passed:
        yield error
        passed.add(id(error))
        error = error.__cause__ or error.__context__
