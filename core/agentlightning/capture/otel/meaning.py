"""The meaning of an OpenTelemetry span, by its convention. Pure: the same span has the same meaning in every process.

Three conventions are read: OpenInference (`openinference.span.kind`), GenAI (`gen_ai.operation.name`), and that of Vercel's AI SDK
(`ai.operationId`). A span of none of them is plumbing. So are chains, workflows, steps, and embeddings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from agentlightning.capture.model_call import ANSWER_ID
from agentlightning.capture.to_json import mapping, plain
from agentlightning.types import JSON, SpanKind

BY_TIME = "join_by_time"
"""Attribute of an `llm` span without a call id: the call was made within the span's time."""
OPENINFERENCE: Mapping[str, SpanKind] = {"LLM": "llm", "AGENT": "agent", "TOOL": "tool", "RETRIEVER": "tool", "GUARDRAIL": "tool"}
"""Kinds by `openinference.span.kind`. The others are plumbing."""
GENAI: Mapping[str, SpanKind] = {
    "chat": "llm", "text_completion": "llm", "generate_content": "llm",
    "invoke_agent": "agent", "execute_tool": "tool",
}  # fmt: skip
"""Kinds by `gen_ai.operation.name`. The others are plumbing."""
AGENT_NAMES = ("gen_ai.agent.name", "agent.name", "ai.telemetry.functionId")
MODELS = ("gen_ai.request.model", "llm.model_name", "gen_ai.response.model", "ai.model.id")
TOOL_NAMES = ("gen_ai.tool.name", "tool.name", "ai.toolCall.name")
TOOL_CALL_IDS = ("gen_ai.tool.call.id", "tool_call.id", "tool.id", "ai.toolCall.id")
INPUTS = ("gen_ai.tool.call.arguments", "ai.toolCall.args", "input.value", "tool.parameters")
OUTPUTS = ("gen_ai.tool.call.result", "ai.toolCall.result", "output.value")
EVENTS = {"input": ("gen_ai.tool.message", "content"), "output": ("gen_ai.choice", "message")}
"""Events of a tool, and their attribute."""
RESPONSE_IDS = ("gen_ai.response.id", "ai.response.id", "llm.response.id")
SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "seed", "stop_sequences", "frequency_penalty", "presence_penalty")
USAGE: Mapping[str, tuple[str, ...]] = {
    "input_tokens": ("gen_ai.usage.input_tokens", "llm.token_count.prompt"),
    "output_tokens": ("gen_ai.usage.output_tokens", "llm.token_count.completion"),
}
LLAMA_INDEX = "openinference.instrumentation.llama_index"
HELPER = re.compile(r"\w+\._\w+")
"""A method of a LlamaIndex model that prepares or reads a call, and makes none."""
AGENT_RUN = re.compile(r"(?!AgentWorkflow\b)\w*Agent\.run|AgentWorkflow\.run_agent_step")
"""The span of a LlamaIndex agent: its run alone, or its step in a workflow."""
CURRENT_AGENT = re.compile(r"current_agent_name=['\"]([^'\"]+)")
DSPY = "openinference.instrumentation.dspy"
MODULE = re.compile(r"(?!Predict\b|ChainOfThought\b)(\w+)\.a?forward")
"""The span of a DSPy module. Those around a single model call are plumbing, because their class names no role."""
ACTION = re.compile(r"\.(a?run|a?forward|a?call|__call__|invoke|kickoff|_?a?execute\w*)$")
"""The method in the name of an OpenInference span, as in `writer.run`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedSpan:
    """A span of OpenTelemetry after its end, from this process or another."""

    id: str
    """Unique among all traces."""
    parent_id: str | None
    name: str
    scope: str = ""
    """Name of the instrumentation that made it."""
    started: float
    """Seconds since the epoch."""
    ended: float
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    events: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Names and attributes."""
    failed: bool = False
    error: str | None = None
    """The description of its failure."""
    call_id: str | None = None
    """The model call, if the process saw its request."""
    unjoined: str | None = None
    """The reason why the process knows none."""
    near: bool = True
    """Without a call id: whether its call was made within its time."""
    covered: bool = False
    """True: an adapter of ours records the same event."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """Our view of an OpenTelemetry span."""

    kind: SpanKind | None
    """None: plumbing, not recorded."""
    name: str = ""
    agent: str | None = None
    """The acting agent, if the span names it. Plumbing names that of its parent."""
    call_id: str | None = None
    """Of a model call: the id that its answer told."""
    attributes: dict[str, JSON] = field(default_factory=dict[str, JSON])


def read(span: EndedSpan) -> Meaning:
    """Return the meaning of a span."""
    kind = None if span.covered else kind_of(span.name, span.scope, span.attributes)
    if kind == "llm":
        return _model_call(span)
    if kind == "tool":
        return _tool(span)
    if kind == "agent":
        name = _own_name(span) or ACTION.sub("", span.name.removeprefix("invoke_agent ")) or "agent"
        return Meaning("agent", name, _own_name(span), attributes=_error(span))
    return Meaning(None, agent=_own_name(span))


def kind_of(name: str, scope: str, attributes: Mapping[str, Any]) -> SpanKind | None:
    """Return the kind of a span with this name, instrumentation and attributes; None: plumbing."""
    if (kind := attributes.get("openinference.span.kind")) is not None:
        if (scope == DSPY and MODULE.fullmatch(name)) or (scope == LLAMA_INDEX and AGENT_RUN.fullmatch(name)):
            return "agent"
        return None if scope == LLAMA_INDEX and HELPER.fullmatch(name) else OPENINFERENCE.get(str(kind))
    operation = str(attributes.get("ai.operationId") or "")
    if operation.startswith("ai."):
        if operation.endswith((".doGenerate", ".doStream")):
            return "llm"
        named = operation.count(".") == 1 and attributes.get("ai.telemetry.functionId")
        return "tool" if operation == "ai.toolCall" else "agent" if named else None
    return GENAI.get(str(attributes.get("gen_ai.operation.name") or ""))


def _own_name(span: EndedSpan) -> str | None:
    """Return the agent that a span names itself. The steps of a LlamaIndex agent name it, and its run does not."""
    if span.scope == LLAMA_INDEX:
        texts = (str(span.attributes.get(key) or "") for key in ("output.value", "input.value"))
        return next((match[1] for text in texts if (match := CURRENT_AGENT.search(text)) is not None), None)
    return _text(span.attributes, AGENT_NAMES)


def _model_call(span: EndedSpan) -> Meaning:
    attributes = span.attributes
    sampling = _settings(attributes)
    usage = {name: plain(attributes[key]) for name, keys in USAGE.items() for key in keys if key in attributes}
    recorded: dict[str, JSON] = {"sampling": sampling, **({"usage": usage} if usage else {}), **_error(span)}
    reasons = attributes.get("gen_ai.response.finish_reasons")
    if isinstance(reasons, list | tuple) and reasons:
        recorded["finish_reason"] = plain(cast("tuple[Any, ...]", reasons)[0])
    call_id = span.call_id or told(attributes)
    if call_id is None:
        recorded["unjoined"] = span.unjoined or "its span names no answer of the gateway (gen_ai.response.id)"
        if span.near:
            recorded[BY_TIME] = True
        if (output := _first(attributes, ("gen_ai.output.messages", *OUTPUTS))) is not None:
            recorded["output"] = _value(output)
    return Meaning("llm", _text(attributes, MODELS) or span.name, _acting(attributes), call_id, recorded)


def _tool(span: EndedSpan) -> Meaning:
    attributes = span.attributes
    recorded: dict[str, JSON] = {}
    for name, keys in (("input", INPUTS), ("output", OUTPUTS)):
        if (value := _first(attributes, keys) or _in_events(span, name)) is not None:
            recorded[name] = _value(value)
    if (tool_call_id := _text(attributes, TOOL_CALL_IDS)) is not None:
        recorded["tool_call_id"] = tool_call_id
    if attributes.get("openinference.span.kind") == "GUARDRAIL":
        recorded["guardrail"] = True
    recorded |= _error(span)
    if "error" in recorded:
        recorded.pop("output", None)
    name = _text(attributes, TOOL_NAMES) or ACTION.sub("", span.name.removeprefix("execute_tool "))
    return Meaning("tool", name, _acting(attributes), attributes=recorded)


def _in_events(span: EndedSpan, name: str) -> Any:
    """Return the input or output of a tool that tells them as events."""
    event, key = EVENTS[name]
    return next((attributes.get(key) for other, attributes in span.events if other == event), None)


def told(attributes: Mapping[str, Any]) -> str | None:
    """Return the call id in the response id of a model call; None without an answer of the gateway."""
    for value in (_text(attributes, RESPONSE_IDS), *_ids_of(attributes.get("output.value"))):
        match = ANSWER_ID.fullmatch(value) if isinstance(value, str) else None
        if match is not None:
            return match[1]
    return None


def _ids_of(output: Any) -> tuple[object, ...]:
    """Return the ids in an answer that an OpenInference span holds as JSON."""
    answer: Mapping[str, Any] = mapping(_value(output)) if isinstance(output, str) and output.startswith("{") else {}
    return answer.get("system_fingerprint"), answer.get("id"), mapping(answer.get("raw")).get("id")


def _settings(attributes: Mapping[str, Any]) -> dict[str, JSON]:
    settings = {name: plain(attributes[key]) for name in SAMPLING if (key := f"gen_ai.request.{name}") in attributes}
    invocation = mapping(_value(attributes.get("llm.invocation_parameters")))
    return {**{name: plain(invocation[name]) for name in SAMPLING if name in invocation}, **settings}


def _acting(attributes: Mapping[str, Any]) -> str | None:
    """Return the agent that a model call or tool names; None: its ancestors tell."""
    return _text(attributes, AGENT_NAMES[:1])


def _error(span: EndedSpan) -> dict[str, JSON]:
    """Return the failure of a span: its exception, else its description."""
    if not span.failed:
        return {}
    raised = next((attributes for name, attributes in span.events if name == "exception"), None) or dict[str, Any]()
    kind, text = raised.get("exception.type"), raised.get("exception.message")
    return {"error": plain(f"{kind}: {text}" if kind and text else kind or text or span.error or "failed")}


def _first(attributes: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((attributes[key] for key in keys if attributes.get(key) is not None), None)


def _text(attributes: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((value for key in keys if isinstance(value := attributes.get(key), str) and value), None)


def _value(value: Any) -> JSON:
    """Return the value of a text that holds a JSON object or list, else the value itself."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return plain(json.loads(value))
        except (ValueError, RecursionError):
            pass
    return plain(value)
