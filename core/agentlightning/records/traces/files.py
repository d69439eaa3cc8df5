"""Reads files of traces. The format of each record follows from its keys, so that one file may be named without its format."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from agentlightning.errors import TaskError
from agentlightning.gateway.api.otlp import JSON as OTLP_JSON
from agentlightning.gateway.api.otlp import read_spans
from agentlightning.gateway.api.schema import Refused
from agentlightning.records.traces.conversation import ImportedCall, ImportedTrace, Unread, Unreadable
from agentlightning.records.traces.formats import (
    Fields,
    conversation_calls,
    langfuse_call,
    langsmith_call,
    mean_feedback,
    mean_score,
    number,
    otlp_call,
)
from agentlightning.types import JSON

UNKNOWN_FORM = (TypeError, ValueError, KeyError, AttributeError)
"""Errors of reading a record whose fields have other types than its source gives them."""


@dataclass(slots=True)
class TraceReader:
    """Reads the records of files, and groups their model calls by trace."""

    unread: list[Unread] = field(default_factory=list[Unread])
    """What was not read, in order."""
    _calls: dict[str, list[ImportedCall]] = field(default_factory=dict[str, list[ImportedCall]])
    _rewards: dict[str, float] = field(default_factory=dict[str, float])
    _inputs: dict[str, JSON] = field(default_factory=dict[str, JSON])
    _where: dict[str, str] = field(default_factory=dict[str, str])
    _records_of: dict[str, str] = field(default_factory=dict[str, str])
    """Where the records are that have a whole trace, by its id."""
    _parts: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """Traces and ids of the calls that are records of their own."""
    _spoiled: set[str] = field(default_factory=set[str])
    """Traces whose reward cannot be read. Without it, they are not what they were."""

    def add(self, file: Path) -> None:
        """Read a file. Raises `TaskError` if it cannot be read at all."""
        try:
            text = file.read_text(encoding="utf-8-sig")  # with or without a byte order mark
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"{file} cannot be read: {error}. Name a JSON file, or one of JSON lines.") from error
        for where, record in self._records(file, text):
            with self._naming(where):
                self._add(_object(record, "it"), where)

    def traces(self) -> list[ImportedTrace]:
        """Return the traces with a model call, in the order of their first record."""
        return [
            ImportedTrace(
                id, sorted(calls, key=lambda call: call.started), self._where[id], self._rewards.get(id), self._inputs.get(id)
            )
            for id, calls in self._calls.items()
            if id not in self._spoiled
        ]  # fmt: skip

    def _records(self, file: Path, text: str) -> Iterator[tuple[str, Any]]:
        """Yield the records of a JSON document or of JSON lines, with their place."""
        try:
            document: Any = json.loads(text)
        except ValueError:
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    try:
                        yield f"{file}:{number}", json.loads(line)
                    except ValueError as error:
                        self.unread.append(Unread(f"{file}:{number}", f"the line is not JSON ({error})"))
            return
        if isinstance(document, Mapping):  # the envelopes of the sources' APIs
            fields = cast(Fields, document)
            document = next((fields[key] for key in ("data", "runs") if isinstance(fields.get(key), list)), [fields])
        for number, record in enumerate(cast("list[Any]", document) if isinstance(document, list) else [document], 1):
            yield f"{file}, record {number}", record

    def _add(self, record: Fields, where: str) -> None:
        if "resourceSpans" in record:
            self._add_otlp(record, where)
        elif "run_type" in record:
            self._add_langsmith(record, where)
        elif "observations" in record or "traceId" in record:
            self._add_langfuse(record, where)
        elif "messages" in record:
            self._add_messages(record, where)
        else:
            keys = ", ".join(map(repr, list(record)[:6])) or "none"
            self.unread.append(Unread(where, f"it is of no known format (keys: {keys})"))

    def _add_messages(self, record: Fields, where: str) -> None:
        id, reward = str(record.get("id") or where), number(record.get("reward"), "reward")
        calls = conversation_calls(record, where)
        self._begin(id, where, reward)
        for place, call in enumerate(calls):
            self._keep(id, replace(call, started=float(place)))

    def _add_langfuse(self, record: Fields, where: str) -> None:
        if "observations" not in record:  # an observation of its own
            self._add_observation(record, str(record["traceId"]), where)
            return
        id = str(record.get("id") or where)
        with self._naming(f"{where} (trace {id})"):
            observations = record["observations"]
            if not isinstance(observations, list):
                raise Unreadable(f"its observations are a {type(observations).__name__}, not a list")
            if not observations or isinstance(observations[0], str):
                raise Unreadable("it has no observations. Export the trace with them")
            self._begin(id, where, mean_score(record.get("scores")))
            self._inputs[id] = cast(JSON, record.get("input"))
            for observation in cast("list[Any]", observations):
                with self._naming(f"{where} (trace {id})"):
                    self._add_observation(_object(observation, "an observation"), id, where)

    def _add_observation(self, observation: Fields, trace: str, where: str) -> None:
        if observation.get("type") != "GENERATION":
            return  # a step of the agent, which is no model call
        place = f"{where} (observation {observation.get('id')})"
        with self._naming(place):
            self._keep(trace, langfuse_call(observation, place), observation.get("id"))

    def _add_langsmith(self, run: Fields, where: str) -> None:
        trace, place = str(run.get("trace_id") or run.get("id")), f"{where} (run {run.get('id')})"
        with self._naming(place):
            if run.get("run_type") == "llm":
                self._keep(trace, langsmith_call(run, place), run.get("id"))
        if run.get("parent_run_id") is not None:
            return
        if run.get("run_type") != "llm":
            self._inputs[trace] = cast(JSON, run.get("inputs"))
        with self._naming(place):
            self._spoiled.add(trace)
            reward = mean_feedback(run.get("feedback_stats"))
            self._spoiled.discard(trace)
            if reward is not None:
                self._rewards[trace] = reward

    def _add_otlp(self, record: Fields, where: str) -> None:
        try:
            spans, without_id = read_spans(json.dumps(record).encode(), OTLP_JSON)
        except Refused as error:
            raise Unreadable(str(error)) from error
        if without_id:
            self.unread.append(Unread(where, f"{without_id} spans have no valid id"))
        for span in spans:
            place = f"{where} (span {span.id[:16]})"
            with self._naming(place):
                if (call := otlp_call(span, place)) is not None:
                    self._keep(span.id[16:], call, span.id[:16])

    @contextmanager
    def _naming(self, where: str) -> Generator[None]:
        """Keep the reason why a part of a file cannot be read, and go on after it."""
        try:
            yield
        except Unreadable as error:
            self.unread.append(Unread(where, str(error)))
        except UNKNOWN_FORM as error:
            self.unread.append(Unread(where, f"its form is unknown ({type(error).__name__}: {error})"))

    def _begin(self, id: str, where: str, reward: float | None) -> None:
        """Begin a trace that is one record."""
        if id in self._records_of:
            raise Unreadable(f"its id {id!r} is also that of {self._records_of[id]}. Give each trace an id of its own")
        self._records_of[id] = where
        if reward is not None:
            self._rewards[id] = reward

    def _keep(self, trace: str, call: ImportedCall, part: Any = None) -> None:
        """Add a call to its trace. `part`: its id, if it is a record of its own."""
        if part is not None:
            if (trace, str(part)) in self._parts:
                raise Unreadable("it was read already")
            self._parts.add((trace, str(part)))
        self._calls.setdefault(trace, []).append(call)
        self._where.setdefault(trace, call.where)


def _object(value: Any, name: str) -> Fields:
    if not isinstance(value, Mapping):
        raise Unreadable(f"{name} is a {type(value).__name__}, not an object")
    return cast(Fields, value)
