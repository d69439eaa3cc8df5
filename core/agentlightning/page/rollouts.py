"""Pages of rollouts, newest first, filtered and searched. No page reads more than its share of the store.

The store applies the filters that it knows. The others need the records, so a page with few matches ends after a moment and says how many
rollouts it has searched; the next one continues there.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from agentlightning.contracts.store import RolloutState, StoredRollout
from agentlightning.errors import ConfigError
from agentlightning.page.library import Source
from agentlightning.page.rows import build, row, sampling_kind
from agentlightning.records.shown import Shown
from agentlightning.training.recorded import finished_step
from agentlightning.types import JSON, Mode, RolloutStatus

PAGE = 50
CHUNK = 50
"""Rollouts that a search reads between two looks at the clock."""
PATIENCE = 0.4
"""Seconds of one search."""
Trained = Literal["yes", "no"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """The rollouts of a page. None: all."""

    mode: Mode | None = None
    status: RolloutStatus | None = None
    step: int | None = None
    """As `metrics.jsonl` counts it."""
    group: str | None = None
    sampling: str | None = None
    trained: Trained | None = None
    lowest: float | None = None
    highest: float | None = None
    """Of the reward."""
    text: str = ""
    """Searched in the task, prompts and replies, in any case."""

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Filters:
        """Read the filters of an address. Raises `ConfigError` for a value that a filter does not have."""
        return cls(
            mode=_choice(query, "mode", get_args(Mode)),
            status=_choice(query, "status", get_args(RolloutStatus)),
            step=_number(query, "step", int),
            group=query.get("group") or None,
            sampling=_choice(query, "sampling", ("sampled", "greedy", "as asked")),
            trained=_choice(query, "trained", get_args(Trained)),
            lowest=_number(query, "lowest", float),
            highest=_number(query, "highest", float),
            text=query.get("text", "").strip().casefold(),
        )

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The filters that the store applies, as arguments of `list`. A step is two of them, newest first: its evaluation has its number,
        and its training rollouts were started one before."""
        fixed: dict[str, Any] = {"group": self.group, "status": None if self.status is None else [self.status]}
        if self.step is None:
            return [{**fixed, "mode": self.mode}]
        modes: tuple[Mode, ...] = ("production", "eval", "train") if self.mode is None else (self.mode,)
        return [{**fixed, "mode": mode, "step": self.step - (mode == "train")} for mode in modes]

    def admits_replayed(self, state: RolloutState) -> bool:
        """Whether a rollout of another store passes the filters that the store of the run applies to its own."""
        rollout = state.rollout
        fits = [(self.mode, rollout.mode), (self.status, state.status), (self.step, finished_step(rollout)), (self.group, rollout.group)]
        return self.admits_state(state) and all(wanted in (None, value) for wanted, value in fits)

    @property
    def reads(self) -> bool:
        """Whether a filter needs the records of each rollout."""
        return bool(self.text) or (self.trained, self.lowest, self.highest) != (None, None, None)

    def admits_state(self, state: RolloutState) -> bool:
        """Whether a rollout passes the filters that need no records."""
        return self.sampling in (None, sampling_kind(state.rollout))

    def admits(self, shown: Shown) -> bool:
        """Whether a rollout passes the filters that need its trajectory."""
        reward = None if shown.trajectory is None else shown.trajectory.reward
        for limit, sign in ((self.lowest, 1), (self.highest, -1)):
            if limit is not None and (reward is None or sign * reward < sign * limit):
                return False
        return self.trained is None or (shown.account.trained > 0) == (self.trained == "yes")


async def page(source: Source, filters: Filters, cursor: str, limit: int = PAGE) -> dict[str, JSON]:
    """Return the next rows, the cursor of those after them (None: there are no more), and how many rollouts were searched."""
    part, after = _place(cursor)
    parts, rows, searched = filters.parts, list[JSON](), 0
    narrow = filters.reads or filters.sampling is not None
    deadline = time.monotonic() + PATIENCE
    while part < len(parts) and len(rows) < limit and (not searched or time.monotonic() < deadline):
        states, after = await source.store.list(after=after, limit=CHUNK if narrow else limit - len(rows), order="newest", **parts[part])
        if not states:
            part, after = part + 1, 0
        searched += len(states)
        ids = [state.rollout.id for state in states if filters.admits_state(state)]
        rows += _rows(source, filters, await asyncio.gather(*map(source.read, ids)))
    if part == len(parts) and not searched and source.replayed:  # a page of its own, because that store may be away
        ids = list(source.replayed)[after : after + CHUNK]
        after, searched = after + len(ids), len(ids)
        stored = await asyncio.gather(*map(source.read, ids))
        rows += _rows(source, filters, [it for it in stored if filters.admits_replayed(it[0])])
    ends = part == len(parts) and after >= len(source.replayed)
    return {"rows": rows, "cursor": None if ends else f"{part}.{after}", "searched": searched}


def _rows(source: Source, filters: Filters, rollouts: Iterable[StoredRollout]) -> list[JSON]:
    """The lines of the rollouts that pass the filters which need records."""
    read = [build(source, *stored) for stored in rollouts if not filters.text or contains(stored, filters.text)]
    return [row(shown) for shown in read if filters.admits(shown)]


def contains(stored: StoredRollout, text: str) -> bool:
    """Whether a text occurs in a rollout: in its task, its conversations or its replies."""
    state, attempts = stored
    values: list[JSON] = [state.rollout.task.id, state.rollout.task.input]
    for records in attempts:
        values += [call.messages for call in records.calls]
        values += [completion.message for completion in records.completions]
    return any(_in(value, text) for value in values)


def _in(value: JSON, text: str) -> bool:
    if isinstance(value, str):
        return text in value.casefold()
    if isinstance(value, dict):
        return any(_in(inner, text) for inner in cast("dict[str, JSON]", value).values())
    if isinstance(value, list):
        return any(_in(inner, text) for inner in cast("list[JSON]", value))
    return value is not None and text in json.dumps(value)


def _place(cursor: str) -> tuple[int, int]:
    part, _, after = (cursor or "0.0").partition(".")
    if not (part.isdecimal() and after.isdecimal()):
        raise ConfigError(f"{cursor!r} is no cursor. Use the one of the page before.")
    return int(part), int(after)


def _choice(query: Mapping[str, str], name: str, choices: tuple[Any, ...]) -> Any:
    value = query.get(name) or None
    if value is not None and value not in choices:
        raise ConfigError(f"{name} is {value!r}. Use one of {', '.join(choices)}.")
    return value


def _number(query: Mapping[str, str], name: str, kind: type[Any]) -> Any:
    value = query.get(name) or None
    try:
        return None if value is None else kind(value)
    except ValueError:
        raise ConfigError(f"{name} is {value!r}. Use a number.") from None
