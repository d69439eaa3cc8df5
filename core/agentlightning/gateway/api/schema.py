"""The canonical request: its types. `checks` refuses unsupported settings."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from agentlightning.gateway.api.tool_arguments import unmarked_arguments


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
    refusal: str | None = None


class Message(msgspec.Struct):
    """One message. `function_call` and the role `function` are OpenAI's older form of a tool call and its result."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    refusal: str | None = None
    function_call: Function | None = None

    @property
    def text(self) -> str:
        """Its content; where there is none, the refusal in its place."""
        if isinstance(self.content, list):
            return "".join(part.text or part.refusal or "" for part in self.content) or self.refusal or ""
        return self.content or self.refusal or ""


class ToolFunction(msgspec.Struct, omit_defaults=True):
    """The function of a tool."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    """A tool that the model may call. Templates print it in this order of keys."""

    type: str = "function"
    function: ToolFunction


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
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_ids: bool | None = None


class ChoiceSettings(Settings, kw_only=True):
    """Fields of the forms that answer with choices."""

    stream_options: StreamOptions | None = None
    n: int | None = None


class ChatRequest(ChoiceSettings, kw_only=True):
    """The body of `/v1/chat/completions`."""

    messages: list[Message]
    tools: list[Tool] | None = None
    sent_tools: list[dict[str, Any]] | None = msgspec.field(default=None, name="tools as sent")
    """The tools with the sender's order of keys, which a template prints."""
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None

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
    def template_settings(self) -> dict[str, Any]:
        """The settings that change how the chat template renders the messages, without those that ask for the default."""
        defaults: dict[str, Any] = {"continue_final_message": False, "add_generation_prompt": True, "chat_template_kwargs": {}}
        asked = {name: getattr(self, name) for name in defaults}
        return {name: value for name, value in asked.items() if value is not None and value != defaults[name]}

    def offered(self) -> list[dict[str, Any]]:
        """The tools that the model may call, as the renderer takes them."""
        return [] if self.tool_choice == "none" else self.sent_or_plain_tools()

    def sent_or_plain_tools(self) -> list[dict[str, Any]]:
        """All tools of the request, also those that `tool_choice` hides from the model."""
        return self.sent_tools or [msgspec.to_builtins(tool) for tool in self.tools or ()]

    def settings_for_others(self) -> dict[str, Any]:
        """What another server needs to answer in the same form: settings of tools and format, as plain values, and `stop`."""
        tools = {"tool_choice": self.tool_choice, "parallel_tool_calls": self.parallel_tool_calls} if self.offered() else {}
        settings = {**tools, "response_format": None if self.format is None else msgspec.to_builtins(self.format)}
        return {"stop": self.stops, **{name: value for name, value in settings.items() if value is not None}}

    def history(self) -> list[dict[str, Any]]:
        """The messages as plain values: content as text, absent fields absent, `developer` as `system`, functions as tools."""
        plain: list[dict[str, Any]] = []
        function_id: str | None = None  # of the latest `function_call`: the older form has no ids
        for i, message in enumerate(self.messages):
            function_id = f"function_{i}" if message.function_call is not None else function_id
            plain.append(_plain(message, function_id))
        return plain


def _plain(message: Message, function_id: str | None) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": {"developer": "system", "function": "tool"}.get(message.role, message.role), "content": message.text}
    calls = message.tool_calls or ([] if message.function_call is None else [ToolCall(message.function_call, function_id or "")])
    if calls:
        plain["tool_calls"] = [msgspec.to_builtins(_unmarked(call)) for call in calls]
    answers = message.tool_call_id or (function_id if message.role == "function" else None)
    if answers is not None:
        plain["tool_call_id"] = answers
    if message.name is not None and plain["role"] == "tool":
        plain["name"] = message.name
    return plain


def _unmarked(call: ToolCall) -> ToolCall:
    return replace(call, function=replace(call.function, arguments=unmarked_arguments(call.function.arguments)))


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
