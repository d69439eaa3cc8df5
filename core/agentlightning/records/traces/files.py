"""Reads files of traces. The format of each record follows from its keys, so that one file may be named without its format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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
    mean_score,
    otlp_call,
)
from agentlightning.types import JSON


@dataclass(slots=True)
class TraceReader:
    """Reads the records of files, and groups their model calls by trace."""

    unread: list[Unread] = field(default_factory=list[Unread])
    """What was not read, in order."""
    _calls: dict[str, list[ImportedCall]] = field(default_factory=dict[str, list[ImportedCall]])
    _rewards: dict[str, float] = field(default_factory=dict[str, float])
    _inputs: dict[str, JSON] = field(default_factory=dict[str, JSON])
    _where: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, file: Path) -> None:
        """Read a file. Raises `TaskError` if it cannot be read at all."""
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"{file} cannot be read: {error}. Name a JSON file, or one of JSON lines.") from error
        for where, record in self._records(file, text):
            if isinstance(record, Mapping):
                self._add(cast(Fields, record), where)
            else:
                self.unread.append(Unread(where, f"it is a {type(record).__name__}, not an object"))

    def traces(self) -> list[ImportedTrace]:
        """Return the traces with a model call, in the order of their first record."""
        return [
            ImportedTrace(
                id, sorted(calls, key=lambda call: call.started), self._where[id], self._rewards.get(id), self._inputs.get(id)
            )
            for id, calls in self._calls.items()
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
        id = str(record.get("id") or where)
        try:
            for place, call in enumerate(conversation_calls(record, where)):
                self._keep(id, replace(call, started=float(place)))
        except Unreadable as error:
            self.unread.append(Unread(where, str(error)))
            return
        if isinstance(record.get("reward"), int | float):
            self._rewards[id] = float(record["reward"])

    def _add_langfuse(self, record: Fields, where: str) -> None:
        if "observations" not in record:  # an observation of its own
            self._add_observation(record, str(record["traceId"]), where)
            return
        id = str(record.get("id") or where)
        observations = cast("list[Any]", record["observations"])
        if not observations or isinstance(observations[0], str):
            self.unread.append(Unread(f"{where} (trace {id})", "it has no observations. Export the trace with them"))
            return
        for observation in observations:
            self._add_observation(cast(Fields, observation), id, where)
        if id in self._calls:
            if (reward := mean_score(cast("list[Fields]", record.get("scores") or []))) is not None:
                self._rewards[id] = reward
            self._inputs[id] = cast(JSON, record.get("input"))

    def _add_observation(self, observation: Fields, trace: str, where: str) -> None:
        if observation.get("type") != "GENERATION":
            return  # a step of the agent, which is no model call
        place = f"{where} (observation {observation.get('id')})"
        self._try(trace, place, lambda: langfuse_call(observation, place))

    def _add_langsmith(self, run: Fields, where: str) -> None:
        trace, place = str(run.get("trace_id") or run.get("id")), f"{where} (run {run.get('id')})"
        if run.get("run_type") == "llm":
            self._try(trace, place, lambda: langsmith_call(run, place))
        elif run.get("parent_run_id") is None:
            self._inputs[trace] = cast(JSON, run.get("inputs"))
        scores = cast("Mapping[str, Fields]", run.get("feedback_stats") or {})
        values = [float(stats["avg"]) for stats in scores.values() if isinstance(stats.get("avg"), int | float)]
        if values and run.get("parent_run_id") is None:
            self._rewards[trace] = sum(values) / len(values)

    def _add_otlp(self, record: Fields, where: str) -> None:
        try:
            spans, without_id = read_spans(json.dumps(record).encode(), OTLP_JSON)
        except Refused as error:
            self.unread.append(Unread(where, str(error)))
            return
        if without_id:
            self.unread.append(Unread(where, f"{without_id} spans have no valid id"))
        for span in spans:
            place = f"{where} (span {span.id[:16]})"
            self._try(span.id[16:], place, lambda span=span, place=place: otlp_call(span, place))

    def _try(self, trace: str, where: str, read: Any) -> None:
        """Keep a call, or the reason why it cannot be read."""
        try:
            call = read()
        except Unreadable as error:
            self.unread.append(Unread(where, str(error)))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            self.unread.append(Unread(where, f"its form is unknown ({type(error).__name__}: {error})"))
        else:
            if call is not None:
                self._keep(trace, call)

    def _keep(self, trace: str, call: ImportedCall) -> None:
        self._calls.setdefault(trace, []).append(call)
        self._where.setdefault(trace, call.where)
