"""The answers of an upstream, read for the record. One reader for each form. The bytes themselves go on to the agent.

Each API has its own reader. A reply has token ids only if every piece of it came with them.
"""

from __future__ import annotations

import msgspec

from agentlightning.gateway.api.answers import encode
from agentlightning_upstream.replies import Choice, Fields, mapping, mappings, text, token_ids

_fields = msgspec.json.Decoder(Fields)
_raw = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raws = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
FINAL = ("response.completed", "response.incomplete", "response.failed")
"""Events that end a response."""


class Reader:
    """Reads the answer to one chat completions or completions request."""

    def __init__(self, path: str, count: int, *, hidden: tuple[str, ...] = ()) -> None:
        """`count`: replies to come. `hidden`: fields that only the record asked for."""
        self.choices: dict[int, Choice] = {}
        self.counted: int | None = None
        """Tokens of all replies, as the upstream counts them."""
        self._chat, self._count, self._hidden = path.endswith("/chat/completions"), count, hidden
        self._prompt_ids: list[int] | None = None

    @property
    def done(self) -> bool:
        """Return True if every reply has ended."""
        return len(self.choices) >= self._count and all(choice.finish is not None for choice in self.choices.values())

    def take(self, answer: Fields) -> None:
        """Read a body, or an event."""
        self._prompt_ids = token_ids(answer.get("prompt_token_ids")) or self._prompt_ids
        counted = mapping(answer.get("usage")).get("completion_tokens")
        self.counted = counted if type(counted) is int else self.counted
        for place, part in enumerate(mappings(answer.get("choices"))):
            index = part.get("index")
            self._take_choice(self.choices.setdefault(index if type(index) is int else place, Choice()), part)

    def _take_choice(self, choice: Choice, part: Fields) -> None:
        message = mapping(part.get("message") or part.get("delta")) if self._chat else {"content": part.get("text")}
        choice.add(message)
        choice.add_ids(token_ids(part.get("token_ids")), text(message.get("content")))
        choice.prompt_ids = token_ids(part.get("prompt_token_ids")) or choice.prompt_ids or self._prompt_ids
        logprobs = mapping(part.get("logprobs"))
        if self._chat and logprobs.get("content"):
            choice.add_logprobs([token.get("logprob") for token in mappings(logprobs["content"])])
        elif not self._chat and isinstance(logprobs.get("token_logprobs"), list):
            choice.add_logprobs(logprobs["token_logprobs"])
        if part.get("finish_reason"):
            choice.end(part["finish_reason"])

    def close(self) -> None:
        """The upstream says that the answer is whole. Replies without a finish reason have ended all the same."""
        for choice in self.choices.values():
            if choice.finish is None:
                choice.end()

    def shown(self, data: bytes) -> bytes:
        """The JSON of an answer as the agent gets it: without the fields that only the record asked for, else to the byte."""
        if not self._hidden or not any(f'"{name}"'.encode() in data for name in self._hidden):
            return data
        try:
            answer = _raw.decode(data)
            choices = _raws.decode(answer.get("choices", b"[]"))
        except msgspec.MsgspecError:
            return data
        changed = [_without(fields, self._hidden) for fields in (answer, *choices)]
        if not any(changed):
            return data
        return encode({**answer, **({"choices": choices} if "choices" in answer else {})})


def _without(fields: dict[str, msgspec.Raw], names: tuple[str, ...]) -> bool:
    """Take fields out, `logprobs` by null. Returns whether there were any."""
    present = [name for name in names if name in fields and bytes(fields[name]) != b"null"]
    for name in present:
        del fields[name]
        if name == "logprobs":
            fields[name] = msgspec.Raw(b"null")
    return bool(present)


class ResponseReader:
    """Reads the answer to one responses request. This API has no token ids."""

    def __init__(self) -> None:
        self.choices: dict[int, Choice] = {}
        self.counted: int | None = None

    @property
    def done(self) -> bool:
        """Return True if the reply has ended."""
        return bool(self.choices)

    def take(self, answer: Fields) -> None:
        """Read a body, or an event."""
        response = mapping(answer if "output" in answer else answer.get("response"))
        if response and answer.get("type") in (None, *FINAL):
            self._take(response)

    def close(self) -> None:
        """Nothing: an event of its own ends a response."""

    def shown(self, data: bytes) -> bytes:
        """The same bytes."""
        return data

    def _take(self, response: Fields) -> None:
        choice = self.choices[0] = Choice()
        for place, item in enumerate(mappings(response.get("output"))):
            if item.get("type") == "message":
                choice.add({"content": item.get("content")})
            elif item.get("type") == "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                choice.add({"tool_calls": [{"index": place, "id": item.get("call_id"), "function": function}]})
        if response.get("status") in (None, "completed"):
            choice.end()
        else:
            choice.end("length" if mapping(response.get("incomplete_details")).get("reason") == "max_output_tokens" else "error")


def failure(answer: Fields) -> str | None:
    """The text of an answer that is an error; None: it is none."""
    error = answer.get("error") or mapping(answer.get("response")).get("error")
    is_error = "error" in (answer.get("type"), answer.get("object")) or set(answer) == {"detail"}  # of vLLM, of FastAPI
    if not error and not is_error:
        return None
    words = mapping(error).get("message") or error or answer.get("message") or answer.get("detail")
    return words if isinstance(words, str) else encode(words or answer).decode()


def json_object(data: bytes) -> Fields | None:
    """Return the data as a JSON object, or None."""
    try:
        return _fields.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
