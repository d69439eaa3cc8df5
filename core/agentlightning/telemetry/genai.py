"""A rollout as spans by OpenTelemetry's conventions for generative AI. Pure: the same records give the same spans, with the same ids.

The names are those that `capture.otel.meaning` reads. The root is a workflow, which readers of agents take for plumbing, so the gateway
that receives these spans records the same tree. What the conventions do not name begins with `agl.`. A value that was not measured is
absent.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.types import JSON, Call, Completion, Reward, Span

Attributes: TypeAlias = dict[str, Any]
HEX = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenAISpan:
    """A span before it becomes one of the SDK."""

    id: int
    parent_id: int | None
    name: str
    started: float
    """Seconds since the epoch."""
    ended: float
    attributes: Attributes
    is_call: bool = False
    """Whether it is a request to another system: a model call."""
    events: tuple[tuple[str, float, Attributes], ...] = ()
    """Name, time, and attributes."""
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a rollout was worth."""

    reward: float | None = None
    """None: not scored."""
    advantages: Mapping[str, float] = field(default_factory=dict[str, float])
    """By completion, in a step that trained on the rollout."""

    def of(self, completions: Iterable[Completion]) -> float | None:
        """The advantage that these completions share; None: they have none, or different ones."""
        values = {self.advantages[completion.id] for completion in completions if completion.id in self.advantages}
        return values.pop() if len(values) == 1 else None


def trace_id(attempt_id: str) -> int:
    """Return the trace of an attempt: its id is a UUID, and so is a trace's."""
    return int(attempt_id, 16) if HEX.fullmatch(attempt_id) else _hash(attempt_id, 16)


def genai_spans(state: RolloutState, records: AttemptRecords, scores: Scores, *, model: str, content: bool = False) -> list[GenAISpan]:
    """Return the spans of one attempt, the root first. `content`: with messages, arguments, and results."""
    root = _hash(records.attempt.id)
    writer = _Writer(records, scores, root, model, content)
    spans = [writer.span(span) for span in records.spans if span.kind != "note"]
    named = {span.call_id for span in records.spans if span.kind == "llm"}
    spans += [writer.call(call, None) for call in records.calls if call.id not in named]  # no adapter saw them
    return [_root(state, records, scores, root, content, spans), *spans]


def _root(state: RolloutState, records: AttemptRecords, scores: Scores, id: int, content: bool, spans: list[GenAISpan]) -> GenAISpan:
    rollout, attempt = state.rollout, records.attempt
    notes = [span for span in records.spans if span.kind == "note"]
    events = [("agl.note", note.started, {"agl.note": note.name}) for note in notes if content]
    events += [_evaluation(reward) for reward in records.rewards if reward.call_id is None and reward.span_id is None]
    attributes: Attributes = {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.conversation.id": rollout.id,
        "agl.rollout.id": rollout.id,
        "agl.attempt.id": attempt.id,
        "agl.attempt.number": attempt.number,
        "agl.attempt.status": attempt.status,
        "agl.mode": rollout.mode,
        "agl.task.id": rollout.task.id,
        "agl.group": rollout.group,
        "agl.step": rollout.step,
        "agl.reward": scores.reward,
        "agl.advantage": scores.of(records.completions),
        "agl.task.input": _text(rollout.task.input) if content else None,
    }
    failed = attempt.status not in ("succeeded", "running")
    ended = attempt.finished or max((span.ended for span in spans), default=attempt.started)
    return GenAISpan(
        id=id, parent_id=None, name=f"rollout {rollout.task.id}", started=attempt.started, ended=ended, events=tuple(events),
        attributes=_measured(attributes | ({"error.type": attempt.status} if failed else {})),
        error=((attempt.error if content else None) or attempt.status) if failed else None,
    )  # fmt: skip


class _Writer:
    """Writes the spans of one attempt."""

    def __init__(self, records: AttemptRecords, scores: Scores, root: int, model: str, content: bool) -> None:
        self._scores, self._root, self._model, self._content = scores, root, model, content
        self._rollout_id = records.attempt.rollout_id
        self._calls = {call.id: call for call in records.calls}
        self._span_ids = {span.id for span in records.spans if span.kind != "note"}
        self._completions: dict[str, list[Completion]] = {}
        for completion in records.completions:
            self._completions.setdefault(completion.call_id, []).append(completion)
        self._rewards: dict[str, list[Reward]] = {}
        for reward in records.rewards:
            self._rewards.setdefault(reward.call_id or reward.span_id or "", []).append(reward)

    def span(self, span: Span) -> GenAISpan:
        """Return a recorded span. An `llm` span has the tokens of its call."""
        call = self._calls.get(span.call_id or "")
        if span.kind == "llm" and call is not None:
            return self.call(call, span)
        operation, about = "chat", dict[str, Any]()
        if span.kind == "agent":
            operation = "invoke_agent"
        elif span.kind == "tool":
            operation, about = "execute_tool", self._tool(span)
        attributes = {"gen_ai.agent.name": span.agent or (span.name if span.kind == "agent" else None), **about}
        return self._write(span.id, span, operation, span.name, attributes)

    def call(self, call: Call, span: Span | None) -> GenAISpan:
        """Return a model call. `span`: what an adapter recorded of it."""
        completions = self._completions.get(call.id, [])
        told = [completion for completion in completions if len(completion.response_ids) or completion.missing is None]
        attributes: Attributes = {
            "gen_ai.provider.name": "agentlightning",
            "gen_ai.request.model": self._model or (span.name if span else None),
            "gen_ai.response.id": call.id,
            "gen_ai.response.finish_reasons": [completion.finish_reason for completion in completions] or None,
            "gen_ai.usage.input_tokens": len(told[0].prompt_ids) if told else None,
            "gen_ai.usage.output_tokens": sum(len(completion.response_ids) for completion in told) if told else None,
            "gen_ai.agent.name": span.agent if span else None,
            "agl.call.status": call.status,
            "agl.call.context": call.context,
            "agl.advantage": self._scores.of(completions),
            **(_sampling(completions[0], len(completions)) if completions else {}),
        }
        if self._content and completions:
            messages = [_message(completion) for completion in completions]
            attributes["gen_ai.output.messages"] = json.dumps(messages, ensure_ascii=False)
        if span is not None:
            return self._write(span.id, span, "chat", self._model, attributes, call)
        times = Span(id=call.id, attempt_id=call.attempt_id, kind="llm", name=self._model, started=call.started, ended=call.ended)
        return self._write(f"call {call.id}", times, "chat", self._model, attributes, call)

    def _tool(self, span: Span) -> Attributes:
        told = span.attributes
        attributes: Attributes = {"gen_ai.tool.name": span.name, "gen_ai.tool.call.id": told.get("tool_call_id")}
        if self._content:
            parts = {"gen_ai.tool.call.arguments": "input", "gen_ai.tool.call.result": "output"}
            attributes |= {name: _text(told[key]) for name, key in parts.items() if key in told}
        return attributes

    def _write(self, id: str, span: Span, operation: str, name: str, attributes: Attributes, call: Call | None = None) -> GenAISpan:
        rewards = [*self._rewards.get(span.id, ()), *(self._rewards.get(call.id, ()) if call and call.id != span.id else ())]
        error = span.attributes.get("error")
        if call is not None and call.status != "completed":
            attributes, error = {**attributes, "error.type": call.status}, (call.detail if self._content else None) or call.status
        elif error is not None:
            kind = _kind(_text(error))
            attributes, error = {**attributes, "error.type": kind}, error if self._content else kind
        last = max(rewards, key=lambda reward: reward.created, default=None)
        basis = {"gen_ai.operation.name": operation, "gen_ai.conversation.id": self._rollout_id, "agl.reward": last and last.value}
        parent = _hash(span.parent_id) if span.parent_id in self._span_ids and span.parent_id else self._root
        return GenAISpan(
            id=_hash(id), parent_id=parent, name=f"{operation} {name}".strip(), started=span.started, ended=span.ended or span.started,
            attributes=_measured(basis | attributes), is_call=operation == "chat",
            events=tuple(_evaluation(reward) for reward in rewards), error=None if error is None else _text(error),
        )  # fmt: skip


def _kind(error: str) -> str:
    """The kind of an error: the name before its message. The message may quote what the agent read or wrote."""
    name = error.partition(":")[0]
    return name if re.fullmatch(r"[\w.]{1,100}", name) else "error"


def _sampling(completion: Completion, choices: int) -> Attributes:
    sampling, versions = completion.sampling, completion.versions
    return {
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k or None,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.stop_sequences": list(sampling.stop) or None,
        "gen_ai.request.choice.count": choices if choices > 1 else None,
        "agl.policy.name": completion.policy,
        "agl.policy.version": int(versions.max()) if len(versions) and versions.max() >= 0 else None,
    }


def _message(completion: Completion) -> JSON:
    """The reply as `gen_ai.output.messages` has it."""
    message: Mapping[str, Any] = completion.message or {}
    parts: list[JSON] = []
    if message.get("reasoning_content"):
        parts.append({"type": "reasoning", "content": message["reasoning_content"]})
    if message.get("content"):
        parts.append({"type": "text", "content": message["content"]})
    for call in message.get("tool_calls") or ():
        function: Mapping[str, Any] = call.get("function") or {}
        parts.append({"type": "tool_call", "id": call.get("id"), "name": function.get("name"), "arguments": function.get("arguments")})
    return {"role": "assistant", "parts": parts, "finish_reason": completion.finish_reason}


def _evaluation(reward: Reward) -> tuple[str, float, Attributes]:
    attributes = {
        "gen_ai.evaluation.name": reward.name, "gen_ai.evaluation.score.value": reward.value, "agl.reward.source": reward.source,
    }  # fmt: skip
    return "gen_ai.evaluation.result", reward.created, attributes


def _measured(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if value is not None}


def _text(value: JSON) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _hash(text: str, size: int = 8) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest(), "big") or 1
