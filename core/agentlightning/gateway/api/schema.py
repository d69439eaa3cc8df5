"""The canonical request: its types. `checks` refuses unsupported settings."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any, Literal

import msgspec


class Refused(Exception):
    """An answer in OpenAI's error form instead of a reply."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None, type: str = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.type = status, param, code, type
        self.headers: list[tuple[bytes, bytes]] = []

    @property
    def call_status(self) -> Literal["refused", "error"]:
        """`Call.status`: an `error` is no fault of the request, so nobody blames the agent for it."""
        return "refused" if self.status < 500 else "error"

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}


def check_model(asked: str, model: str, policy: str, stand_ins: Collection[str] = ()) -> None:
    """Raises `Refused` for a name that fits neither the model, the policy, nor a pattern in `stand_ins`."""
    if asked in (model, policy) or any(fnmatchcase(asked, pattern) for pattern in stand_ins):
        return
    names = ", ".join([repr(model) if model == policy else f"{model!r}, also as {policy!r} (its policy)", *map(repr, stand_ins)])
    raise Refused(
        f"The model {asked!r} does not exist here. This gateway serves {names}. If your agent hard-codes a model name, set "
        f"models = [{asked!r}].",
        status=404, param="model", code="model_not_found",
    )  # fmt: skip


class Function(msgspec.Struct, omit_defaults=True):
    """The function of a tool call."""

    name: str
    arguments: str = ""


class ToolCall(msgspec.Struct):
    """A tool call in the history."""

    function: Function
    id: str = ""
    type: str = "function"


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None


class Message(msgspec.Struct):
    """One message."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class ToolFunction(msgspec.Struct, omit_defaults=True):
    """The function of a tool."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """A tool that the model may call."""

    function: ToolFunction
    type: str = "function"


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class JsonSchema(msgspec.Struct, omit_defaults=True):
    """A schema for replies."""

    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, omit_defaults=True):
    """The format of the reply: `text`, `json_object`, or `json_schema`."""

    type: str = "text"
    json_schema: JsonSchema | None = None


class Settings(msgspec.Struct, kw_only=True):
    """Fields of every form."""

    model: str
    stream: bool | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    return_token_ids: bool | None = None


class ChoiceSettings(Settings, kw_only=True):
    """Fields of the forms that answer with choices."""

    stream_options: StreamOptions | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None


class ChatRequest(ChoiceSettings, kw_only=True):
    """The body of `/v1/chat/completions`."""

    messages: list[Message]
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    modalities: list[str] | None = None
    functions: list[Any] | None = None
    function_call: Any = None

    @classmethod
    def of(cls, request: Settings, messages: list[Message], **fields: Any) -> ChatRequest:
        """The canonical request for a body of another form."""
        shared = {name: getattr(request, name) for name in ChoiceSettings.__struct_fields__ if hasattr(request, name)}
        return cls(messages=messages, **shared | fields)

    @property
    def limit(self) -> int | None:
        """Tokens to sample at most."""
        limits = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return min(limits, default=None)

    @property
    def format(self) -> ResponseFormat | None:
        """What the reply is asked to be; None: text."""
        return None if self.response_format is None or self.response_format.type == "text" else self.response_format

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def penalties(self) -> list[str]:
        """The settings given that change the distribution in a way that no engine is asked to."""
        return [name for name in ("presence_penalty", "frequency_penalty", "logit_bias") if getattr(self, name)]

    def offered(self) -> list[dict[str, Any]]:
        """The tools that the model may call, as the renderer takes them."""
        if self.tool_choice == "none":
            return []
        return [msgspec.to_builtins(tool) for tool in self.tools or ()]

    def history(self) -> list[dict[str, Any]]:
        """The messages as plain values: content as text, absent fields absent, `developer` as `system`."""
        return [_plain(message) for message in self.messages]


def _plain(message: Message) -> dict[str, Any]:
    content = message.content
    text = "".join(part.text or "" for part in content) if isinstance(content, list) else content or ""
    plain: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": text}
    if message.tool_calls:
        plain["tool_calls"] = msgspec.to_builtins(message.tool_calls)
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.name is not None and message.role == "tool":
        plain["name"] = message.name
    return plain


ANY_TOOL: Literal[""] = ""
"""`forced_tool` of a request that demands a call of any tool."""


def forced_tool(request: ChatRequest) -> str | None:
    """The tool that the reply must call, `ANY_TOOL`, or None. Raises `Refused` for a tool that the request does not offer."""
    choice, names = request.tool_choice, [tool.function.name for tool in request.tools or ()]
    if choice is None or choice in ("auto", "none"):
        return None
    if choice == "required":
        if not names:
            raise Refused("tool_choice is 'required', but the request has no tools. Offer tools, or leave it out.", param="tool_choice")
        return names[0] if len(names) == 1 else ANY_TOOL
    function: Any = choice.get("function") if isinstance(choice, dict) else None
    if not isinstance(function, dict) or function.get("name") not in names:  # pyright: ignore[reportUnknownMemberType]
        raise Refused(f"tool_choice is {choice!r}. Use auto, none, required or one of the tools {names}.", param="tool_choice")
    return str(function["name"])  # pyright: ignore[reportUnknownArgumentType]
