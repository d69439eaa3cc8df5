"""The flat tables of an export: one row per value, one column per field. `docs/records.md` describes them to users.

A table holds every field of its values, so that an import loses nothing. JSON content is text. Some columns are derived: they save users a
join, and an import ignores them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, TypeAlias, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from agentlightning.contracts.store import AttemptRecords, RolloutState, StoredRollout
from agentlightning.errors import WireError
from agentlightning.types import Attempt, Call, Completion, FloatArray, IntArray, Policy, Reward, Rollout, Sampling, Span, Task, WireValue

Kind: TypeAlias = Literal["text", "integer", "number", "flag", "ids", "floats", "json", "sampling"]
Row: TypeAlias = dict[str, Any]
KINDS: dict[Any, Kind] = {
    str: "text", int: "integer", float: "number", bool: "flag", IntArray: "ids", FloatArray: "floats", Sampling: "sampling"
}  # fmt: skip
RENAMED = {"group": "group_id"}
"""Columns by field, where SQL reserves the field's name."""


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one kind of value."""

    name: str
    """Of the file, without its ending."""
    struct: type[WireValue]
    columns: dict[str, Kind]
    """Of the struct's fields, by name."""
    more: dict[str, Kind]
    """Columns that the struct does not have."""

    @classmethod
    def of(cls, name: str, struct: type[WireValue], **more: Kind) -> Table:
        columns: dict[str, Kind] = {}
        for field, hint in get_type_hints(struct).items():
            columns |= {"task_id": "text", "task": "json"} if hint is Task else {RENAMED.get(field, field): _kind(hint)}
        return cls(name, struct, columns, more)

    def row(self, value: WireValue, **more: Any) -> Row:
        """Return the columns of a value, with `more` columns."""
        row: Row = {}
        for field in value.__struct_fields__:
            content = getattr(value, field)
            if isinstance(content, Task):
                row |= {"task_id": content.id, "task": _to_text(content.input)}
                continue
            name = RENAMED.get(field, field)
            row[name] = _to_text(content) if self.columns[name] in ("json", "sampling") else content
        return row | more

    def value(self, row: Mapping[str, Any]) -> Any:
        """Return the value of a row. Raises `WireError` if a column is missing that has no default."""
        fields: dict[str, Any] = {}
        for field in self.struct.__struct_fields__:
            name = RENAMED.get(field, field)
            if field == "task":
                fields[field] = Task(row["task_id"], _from_text(row["task"], "json"))
            elif name in row:
                fields[field] = _from_text(row[name], self.columns[name])
        try:
            return self.struct(**fields)
        except (TypeError, ValueError) as error:
            raise WireError(f"A row of {self.name}.parquet is no {self.struct.__name__}: {error}. Export the store again.") from error


def _kind(hint: Any) -> Kind:
    """The kind of column of a field's type, without its None."""
    union = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for part in union:
        if part in KINDS:
            return KINDS[part]
        if get_origin(part) is Literal:
            return "text"
    return "json"


def _to_text(content: Any) -> str | None:
    return None if content is None else json.dumps(msgspec.to_builtins(content) if isinstance(content, Sampling) else content)


def _from_text(content: Any, kind: Kind) -> Any:
    if content is None or kind not in ("json", "sampling"):
        return content
    return msgspec.convert(json.loads(content), Sampling) if kind == "sampling" else json.loads(content)


_JOINED: dict[str, Kind] = {"rollout_id": "text", "task_id": "text", "mode": "text", "step": "integer", "reward": "number"}
ROLLOUTS = Table.of("rollouts", Rollout, status="text", seq="integer", attempts="integer", reward="number")
ATTEMPTS = Table.of("attempts", Attempt, task_id="text", mode="text", step="integer", reward="number")
CALLS = Table.of("calls", Call, **_JOINED)
COMPLETIONS = Table.of(
    "completions", Completion, **_JOINED, text="text", temperature="number", prompt_tokens="integer", response_tokens="integer"
)
SPANS = Table.of("spans", Span, **_JOINED)
REWARDS = Table.of("rewards", Reward, rollout_id="text", task_id="text", mode="text", step="integer")
POLICIES = Table.of("policies", Policy)
PER_ROLLOUT = (ROLLOUTS, ATTEMPTS, CALLS, COMPLETIONS, SPANS, REWARDS)
"""The tables with the rows of rollouts. Each table has the rows of the same rollouts in its row groups."""


def rows_of(stored: StoredRollout, reward: float | None) -> dict[str, list[Row]]:
    """Return the rows of a rollout by table. `reward`: the rollout's, which its winning attempt has."""
    state, attempts = stored
    rows: dict[str, list[Row]] = {table.name: [] for table in PER_ROLLOUT}
    rollout = state.rollout
    rows["rollouts"] = [ROLLOUTS.row(rollout, status=state.status, seq=state.seq, attempts=len(state.attempts), reward=reward)]
    for records in attempts:
        winner = state.winner is not None and records.attempt.id == state.winner.id
        joined: Row = {"task_id": rollout.task.id, "mode": rollout.mode, "step": rollout.step, "reward": reward if winner else None}
        rows["attempts"].append(ATTEMPTS.row(records.attempt, **joined))
        joined["rollout_id"] = rollout.id
        rows["calls"] += [CALLS.row(call, **joined) for call in records.calls]
        rows["completions"] += [COMPLETIONS.row(completion, **joined, **_summary(completion)) for completion in records.completions]
        rows["spans"] += [SPANS.row(span, **joined) for span in records.spans]
        del joined["reward"]
        rows["rewards"] += [REWARDS.row(reward, **joined) for reward in records.rewards]
    return rows


def _summary(completion: Completion) -> Row:
    message: Any = completion.message
    text: Any = cast(Any, message).get("content") if type(message) is dict else None
    return {
        "text": text.encode("utf-8", "replace").decode() if isinstance(text, str) else None,
        "temperature": completion.sampling.temperature,
        "prompt_tokens": len(completion.prompt_ids),
        "response_tokens": len(completion.response_ids),
    }


def stored_of(tables: Mapping[str, list[Row]]) -> list[StoredRollout]:
    """Return the rollouts that `rows_of` made into rows, of several rollouts in their order. Missing tables are empty."""
    records: dict[str, dict[str, list[Any]]] = {}
    for table in (CALLS, COMPLETIONS, SPANS, REWARDS):
        for row in tables.get(table.name, ()):
            value = table.value(row)
            records.setdefault(value.attempt_id, {}).setdefault(table.name, []).append(value)
    attempts: dict[str, list[Attempt]] = {}
    for row in tables["attempts"]:
        attempts.setdefault(row["rollout_id"], []).append(ATTEMPTS.value(row))
    stored: list[StoredRollout] = []
    for row in tables["rollouts"]:
        own = tuple(attempts.get(row["id"], ()))
        state = RolloutState(rollout=ROLLOUTS.value(row), status=row["status"], attempts=own, seq=row["seq"])
        stored.append((state, tuple(_records(attempt, records.get(attempt.id, {})) for attempt in own)))
    return stored


def _records(attempt: Attempt, records: Mapping[str, list[Any]]) -> AttemptRecords:
    return AttemptRecords(attempt=attempt, **{name: tuple(values) for name, values in records.items()})
