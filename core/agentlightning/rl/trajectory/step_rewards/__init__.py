"""Step signals: what the records of an attempt show of its steps, and the rewards that a configuration makes of them; one subject a file.

A signal is a function of an attempt's records; it gives the spans, calls or completions that show it. Its rewards are made when the records
are read and are written nowhere, so a store can be read again with other values. The same records give the same rewards, ids included.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from agentlightning.config.parts import Part
from agentlightning.contracts.store import AttemptRecords
from agentlightning.errors import ConfigError, RewardError
from agentlightning.registry.registry import Registry
from agentlightning.types import Call, Completion, Reward, Span

Shows: TypeAlias = Span | Call | Completion
StepSignal: TypeAlias = Callable[[AttemptRecords], Iterable[Shows]]
STEP_SIGNAL = "step_signal"
"""Source of a reward that was made of a signal."""


@dataclass(frozen=True, slots=True)
class StepReward:
    """What each step that shows a signal earns."""

    name: str
    value: float
    signal: StepSignal

    def observed(self, records: AttemptRecords) -> Iterator[tuple[Reward, str | None]]:
        """A reward for each span, call or completion that shows the signal, once; with the id of a completion that is meant alone, not its
        call. Raises `RewardError` where the signal cannot be told."""
        seen: set[str] = set()
        for each in self._shown(records):
            if each.id not in seen:
                seen.add(each.id)
                yield self._reward(each, records.attempt.id), each.id if isinstance(each, Completion) else None

    def _shown(self, records: AttemptRecords) -> list[Shows]:
        try:
            shown = list(self.signal(records))
        except Exception as error:
            raise RewardError(f"attempt {records.attempt.id}: the signal {self.name!r} raised {type(error).__name__}: {error}") from error
        known = {each.id for each in (*records.spans, *records.calls, *records.completions)}
        for each in cast("list[Any]", shown):
            if not isinstance(each, Span | Call | Completion) or each.id not in known:
                raise RewardError(
                    f"attempt {records.attempt.id}: the signal {self.name!r} gave {each!r:.80}; "
                    "expected spans, calls or completions of the attempt's records"
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


def step_rewards(table: Mapping[str, float], plugins: Registry | None = None) -> tuple[StepReward, ...]:
    """What a configuration's `step_rewards` say: by the name of a signal, or `module:function`, what it earns. Raises `ConfigError`."""
    for name, value in table.items():
        if not math.isfinite(value):
            raise ConfigError(f"step_rewards.{name} is {value}; expected a finite number")
    return tuple(
        StepReward(name, value, Part.parse("step_signals", name, f"step_rewards.{name}", plugins).make()) for name, value in table.items()
    )
