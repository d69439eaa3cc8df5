"""Step signals: observations of an attempt's steps, and the rewards that a configuration makes of them; one subject a file.

A signal is a function of an attempt's records. It returns the spans, calls or completions that show it. Its rewards are made when the
records are read and are never stored, so a store can be read again with other values. The same records give the same rewards and ids.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from agentlightning.contracts.store import AttemptRecords
from agentlightning.errors import RewardError
from agentlightning.types import Call, Completion, Reward, Span

Shows: TypeAlias = Span | Call | Completion
StepSignal: TypeAlias = Callable[[AttemptRecords], Iterable[Shows]]
STEP_SIGNAL = "step_signal"
"""Source of a reward that a step signal made."""


@dataclass(frozen=True, slots=True)
class StepReward:
    """The reward of each step that shows a signal."""

    name: str
    value: float
    signal: StepSignal

    def observed(self, records: AttemptRecords) -> Iterator[tuple[Reward, str | None]]:
        """A reward for each span, call or completion that shows the signal, once; with the id of a completion that earns it alone, not its
        whole call. Raises `RewardError` if the signal fails."""
        for step in {step.id: step for step in self._shown(records)}.values():
            yield self._reward(step, records.attempt.id), step.id if isinstance(step, Completion) else None

    def _shown(self, records: AttemptRecords) -> list[Shows]:
        try:
            shown = list(self.signal(records))
        except Exception as error:
            raise RewardError(f"Attempt {records.attempt.id}: the signal {self.name!r} raised {type(error).__name__}: {error}") from error
        recorded = {record.id for record in (*records.spans, *records.calls, *records.completions)}
        for step in cast("list[Any]", shown):
            if not isinstance(step, Span | Call | Completion) or step.id not in recorded:
                raise RewardError(
                    f"Attempt {records.attempt.id}: the signal {self.name!r} returned {step!r:.80}. "
                    "Return spans, calls or completions of the attempt's records."
                )
        return shown

    def _reward(self, shows: Shows, attempt_id: str) -> Reward:
        if isinstance(shows, Span):
            span_id, call_id, created = shows.id, None, shows.ended or shows.started
        elif isinstance(shows, Call):
            span_id, call_id, created = None, shows.id, shows.ended
        else:
            span_id, call_id, created = None, shows.call_id, shows.created
        return Reward(
            id=uuid.uuid5(uuid.NAMESPACE_OID, f"agentlightning {attempt_id} {self.name} {shows.id}").hex,
            attempt_id=attempt_id,
            value=self.value,
            name=self.name,
            span_id=span_id,
            call_id=call_id,
            source=STEP_SIGNAL,
            created=created,
        )
