"""One reply of an upstream, as far as it has come. Servers differ in its parts, and every value is checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from agentlightning.types import FinishReason

Fields = dict[str, Any]
FINISHED: dict[str, FinishReason] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "completed"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_length", "model_length"), "length"),
    **dict.fromkeys(("tool_calls", "function_call", "tool_use"), "tool_calls"),
}  # fmt: skip
"""Finish reasons of servers, in small letters. Any other is an `error`: the reply may be incomplete."""


def mapping(value: object) -> Fields:
    """The value if it is an object, else an empty one."""
    return cast(Fields, value) if isinstance(value, dict) else {}


def mappings(value: object) -> list[Fields]:
    """The objects of a list, or none."""
    return [cast(Fields, item) for item in cast("list[Any]", value) if isinstance(item, dict)] if isinstance(value, list) else []


def text(value: object) -> str:
    """Text, or the text of parts."""
    parts = [part.get("text") or part.get("refusal") for part in mappings(value)]
    return value if isinstance(value, str) else "".join(part for part in parts if isinstance(part, str))


def token_ids(value: object) -> list[int] | None:
    """Token ids, or None where the value is something else."""
    if not isinstance(value, list):
        return None
    ids = cast("list[Any]", value)
    return ids if all(type(id) is int and 0 <= id < 2**31 for id in ids) else None


@dataclass(slots=True)
class ToolCall:
    """One tool call, as far as it has come."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether the arguments are a whole object."""
        try:
            return isinstance(json.loads(self.arguments), dict)
        except (ValueError, RecursionError):
            return False


@dataclass(slots=True)
class Choice:
    """One reply."""

    prompt_ids: list[int] | None = None
    ids: list[int] | None = None
    logprobs: list[float] | None = None
    """As the upstream returned them."""
    content: str = ""
    refusal: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list[ToolCall])
    finish: FinishReason | None = None
    broken: bool = False
    """True: text came without its token ids."""
    _open: dict[int, ToolCall] = field(default_factory=dict[int, ToolCall])
    """The latest call of each index."""

    def add(self, delta: Fields) -> None:
        """Add a message, or a part of one."""
        self.content += text(delta.get("content"))
        self.refusal += text(delta.get("refusal"))
        self.reasoning += text(delta.get("reasoning_content") or delta.get("reasoning"))
        parts = mappings(delta.get("tool_calls"))
        for place, part in enumerate(parts):
            self._add_call(part, place if len(parts) > 1 else None)
        if isinstance(delta.get("function_call"), dict):  # OpenAI's older form, with one call
            self._add_call({"index": 0, "function": delta["function_call"]}, None)

    def _add_call(self, part: Fields, place: int | None) -> None:
        """Add a call, or a part of one. Only an id, an index, or what came before tells which call it is of."""
        function, id = mapping(part.get("function")), text(part.get("id"))
        name, arguments = text(function.get("name")), function.get("arguments")
        index = part.get("index") if type(part.get("index")) is int else place
        call = self._call(id, index, name)
        if call is None:
            call = ToolCall()
            self.calls.append(call)
        if index is not None:
            self._open[index] = call
        call.id = id or call.id
        if name != call.name and not (id and call.name):  # servers repeat the name; without an id it may come in pieces
            call.name += name
        call.arguments += json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict | list) else text(arguments)

    def _call(self, id: str, index: int | None, name: str) -> ToolCall | None:
        """The call that a part belongs to. None: it begins another."""
        if id:
            same = next((call for call in self.calls if call.id == id), None)
            latest = self._open.get(index) if index is not None else None
            return same or (latest if latest is not None and not latest.id else None)
        if index is not None:
            return self._open.get(index)
        latest = self.calls[-1] if self.calls else None
        return None if latest is not None and name and latest.is_complete else latest

    def add_ids(self, ids: list[int] | None, content: str) -> None:
        """Add the ids of a part with this text."""
        if ids is not None:
            self.ids = [*(self.ids or ()), *ids]
        elif content:
            self.broken = True

    def add_logprobs(self, logprobs: Sequence[Any]) -> None:
        """Add log-probabilities. Anything but a number becomes NaN: the upstream did not measure it."""
        numbers = [float(logprob) if type(logprob) in (int, float) else float("nan") for logprob in logprobs]
        self.logprobs = [*(self.logprobs or ()), *numbers]

    def end(self, reason: object = None) -> None:
        """End the reply with an upstream's reason; without one, as its content says."""
        ended: FinishReason = "tool_calls" if self.calls else "stop"
        self.finish = ended if reason is None else FINISHED.get(str(reason).lower(), "error")

    def message(self) -> Fields:
        """In OpenAI's form."""
        message: Fields = {"role": "assistant", "content": self.content or self.refusal or (None if self.calls else "")}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in self.calls
            ]
        return message
