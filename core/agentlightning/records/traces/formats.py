"""Model calls in the records of each source. A record that is a model call and cannot be read raises `Unreadable` with the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from agentlightning.capture.otel.meaning import EndedSpan, kind_of
from agentlightning.records.traces.conversation import ImportedCall, Message, Unreadable, message_of, parsed
from agentlightning.types import JSON

Fields = Mapping[str, Any]
INDEXED = re.compile(r"llm\.(input|output)_messages\.(\d+)\.message\.(.+)")
"""OpenInference writes messages as flat attributes."""


def langfuse_call(observation: Fields, where: str) -> ImportedCall:
    """Return the call of a Langfuse observation of the type GENERATION."""
    request = parsed(observation.get("input"))
    if observation.get("level") == "ERROR":
        raise Unreadable(f"the call failed: {observation.get('statusMessage') or 'no message'}")
    return _call(request, parsed(observation.get("output")), where, _time(observation.get("startTime")))


def langsmith_call(run: Fields, where: str) -> ImportedCall:
    """Return the call of a LangSmith run of the type llm."""
    if run.get("error"):
        raise Unreadable(f"the call failed: {str(run['error'])[:80]}")
    request = dict(cast(Fields, parsed(run.get("inputs")) or {}))
    extra = cast(Fields, parsed(run.get("extra")) or {})
    request.setdefault("tools", cast(Fields, extra.get("invocation_params") or {}).get("tools"))
    return _call(request, parsed(run.get("outputs")), where, _time(run.get("start_time")))


def otlp_call(span: EndedSpan, where: str) -> ImportedCall | None:
    """Return the call of a span, by the conventions GenAI and OpenInference; None: it is no model call."""
    if kind_of(span.name, span.scope, span.attributes) != "llm":
        return None
    attributes = span.attributes
    if span.failed:
        raise Unreadable(f"the call failed: {span.error or 'no message'}")
    if "gen_ai.input.messages" in attributes:
        messages = parsed(attributes["gen_ai.input.messages"])
        output = parsed(attributes.get("gen_ai.output.messages"))
        system = parsed(attributes.get("gen_ai.system_instructions"))
        if system:
            messages = [{"role": "system", "parts": system}, *messages]
        tools = parsed(attributes.get("gen_ai.tool.definitions"))
        return _call({"messages": messages, "tools": tools}, output, where, span.started)
    indexed = _indexed(attributes)
    if not indexed["input"]:
        raise Unreadable("the span has no messages. Switch on the capture of content in its instrumentation")
    tools = [parsed(value) for key, value in sorted(attributes.items()) if re.fullmatch(r"llm\.tools\.\d+\.tool\.json_schema", key)]
    return _call({"messages": indexed["input"], "tools": tools}, indexed["output"], where, span.started)


def conversation_calls(line: Fields, where: str) -> list[ImportedCall]:
    """Return the calls of a line of messages: each reply of the assistant answers the messages before it."""
    raw = line.get("messages")
    if not isinstance(raw, list):
        raise Unreadable("it has no list of messages")
    messages = [message_of(message) for message in cast("list[Any]", raw)]
    tools = _tools(line.get("tools"))
    calls = [
        ImportedCall(messages[:place], message, tools, where)
        for place, message in enumerate(messages)
        if message["role"] == "assistant" and place
    ]
    if not calls:
        raise Unreadable("no reply of the assistant follows a message")
    return calls


def _call(request: Any, answer: Any, where: str, started: float) -> ImportedCall:
    """Return a call from the forms of requests and answers that tracers record."""
    fields = cast(Fields, request) if isinstance(request, Mapping) else {"messages": request}
    messages: Any = fields.get("messages")
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages:
        raise Unreadable("its input has no messages")
    flat = cast("list[Any]", messages)
    if isinstance(flat[0], list):  # LangChain's batches
        if len(flat) > 1:
            raise Unreadable(f"it is a batch of {len(flat)} requests")
        flat = cast("list[Any]", flat[0])
    reply = message_of(_reply(answer))
    if reply["role"] != "assistant":
        raise Unreadable(f"its answer has the role {reply['role']!r}")
    return ImportedCall([message_of(message) for message in flat], reply, _tools(fields.get("tools")), where, started)


def _reply(answer: Any) -> Any:
    """Return the message of an answer: a message, choices, LangChain's generations, a list of one of them, or text."""
    if isinstance(answer, str) and answer:
        return {"role": "assistant", "content": answer}
    if isinstance(answer, list):
        several = cast("list[Any]", answer)
        if len(several) != 1:
            raise Unreadable(f"it has {len(several)} answers")
        return _reply(several[0])
    if not isinstance(answer, Mapping) or not answer:
        raise Unreadable("it has no answer")
    fields = cast(Fields, answer)
    for key in ("choices", "generations", "messages", "message", "output"):
        if fields.get(key) and "role" not in fields:
            return _reply(fields[key])
    return fields


def _tools(tools: Any) -> list[JSON]:
    """Return tools in OpenAI's form."""
    several: Any = parsed(tools) or []
    if not isinstance(several, list):
        raise Unreadable(f"its tools are a {type(several).__name__}, not a list")
    for tool in cast("list[Any]", several):
        if not isinstance(tool, Mapping):
            raise Unreadable(f"a tool is a {type(tool).__name__}, not an object")
    return [cast(JSON, tool if "function" in tool else {"type": "function", "function": tool}) for tool in cast("list[Fields]", several)]


def _indexed(attributes: Fields) -> dict[str, list[Message]]:
    """Return the messages of OpenInference's flat attributes."""
    sides: dict[str, dict[int, dict[str, Any]]] = {"input": {}, "output": {}}
    for key, value in attributes.items():
        if (match := INDEXED.fullmatch(key)) is not None:
            sides[match[1]].setdefault(int(match[2]), {})[match[3]] = value
    return {side: [_flat_message(fields) for _, fields in sorted(messages.items())] for side, messages in sides.items()}


def _flat_message(fields: Fields) -> Message:
    message: Message = {key: fields[key] for key in ("role", "content", "tool_call_id") if key in fields}
    texts = [value for key, value in sorted(fields.items()) if re.fullmatch(r"contents\.\d+\.message_content\.text", key)]
    if texts:
        message["content"] = "".join(texts)
    calls: dict[int, dict[str, Any]] = {}
    for key, value in fields.items():
        if (match := re.fullmatch(r"tool_calls\.(\d+)\.tool_call\.(id|function\.name|function\.arguments)", key)) is not None:
            calls.setdefault(int(match[1]), {})[match[2].rpartition(".")[2]] = value
    return message | ({"tool_calls": [call for _, call in sorted(calls.items())]} if calls else {})


def _time(value: Any) -> float:
    """Return seconds from a time of a source; 0: it has none."""
    if isinstance(value, int | float):
        return float(value)
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return 0.0


def mean_score(scores: Any) -> float | None:
    """Return the mean of a Langfuse trace's numeric scores; None: it has none."""
    if not isinstance(scores, list | None):
        raise Unreadable(f"its scores are a {type(scores).__name__}, not a list")
    return _mean([_field(score, "value", "score") for score in cast("list[Any]", scores or [])])


def mean_feedback(feedback: Any) -> float | None:
    """Return the mean of a LangSmith run's numeric feedback; None: it has none."""
    if not isinstance(feedback, Mapping | None):
        raise Unreadable(f"its feedback_stats are a {type(feedback).__name__}, not an object")
    return _mean([_field(stats, "avg", f"feedback {key}") for key, stats in cast("Mapping[str, Any]", feedback or {}).items()])


def number(value: Any, name: str) -> float | None:
    """Return a finite number; None: it is absent."""
    if value is None:
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise Unreadable(f"its {name} is {value!r:.80}, not a finite number")
    return float(value)


def _field(fields: Any, key: str, name: str) -> float | None:
    """The number in a field; None: it is absent, or a category."""
    if not isinstance(fields, Mapping):
        raise Unreadable(f"a {name} is a {type(fields).__name__}, not an object")
    value = cast(Fields, fields).get(key)
    return None if isinstance(value, str) else number(value, name)


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
