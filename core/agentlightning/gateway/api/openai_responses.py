"""`/v1/responses`: OpenAI's Responses form, read.

Items become chat messages. An assistant message and the function calls after it are one message, because they were one reply. Ids, status
and log-probabilities of returned items do not count, so their history is the sampled conversation, and is bridged. Messages have no
reasoning items: a bridge keeps the sampled reasoning tokens, and a freshly rendered prompt has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from agentlightning.gateway.api.openai_responses_answer import PREFIX, ResponsesAnswer
from agentlightning.gateway.api.openai_responses_tools import ResponseTool, has_grammar, qualified, read_call, read_tools
from agentlightning.gateway.api.parameters import RESPONSES
from agentlightning.gateway.api.protocol import Asked, Form
from agentlightning.gateway.api.schema import (
    ChatRequest,
    JsonSchema,
    Message,
    Part,
    Refused,
    ResponseFormat,
    Settings,
)
from agentlightning.gateway.auth import AttemptState


class Item(msgspec.Struct):
    """One item of the input. Its type decides which fields count."""

    type: str = "message"
    role: str | None = None
    content: str | list[dict[str, Any]] | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str = ""
    input: str | None = None
    output: str | list[dict[str, Any]] | None = None


class TextFormat(JsonSchema):
    """`text.format`."""

    type: str = "text"
    name: str = ""


class TextConfig(msgspec.Struct):
    format: TextFormat | None = None


class ResponsesRequest(Settings, kw_only=True):
    """The body of `/v1/responses`."""

    input: str | list[Item] = ""
    instructions: str | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    text: TextConfig | None = None
    include: list[str] | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    truncation: str | None = None


ROLES = ("system", "developer", "user", "assistant")
GRAMMAR = {"tools.format": "The prompt asks for the grammar of a custom tool's input, but nothing forces it."}
LOGPROBS = "message.output_text.logprobs"


class ResponsesForm(Form[ResponsesRequest]):
    """See `Form`."""

    path = "/v1/responses"
    body = ResponsesRequest
    parameters = RESPONSES
    names: ClassVar[Mapping[str, str]] = {
        "messages$": "input",
        "max_completion_tokens": "max_output_tokens",
        r"response_format\.type": "text.format.type",
        r"response_format\.json_schema": "text.format",
        r"(tools\[\d+\])\.function\.parameters": r"\1.parameters",
    }

    def read(self, request: ResponsesRequest, fields: dict[str, Any], state: AttemptState) -> Asked:
        """See `Form.read`."""
        _check(request)
        instructions = [] if request.instructions is None else [Message("system", request.instructions)]
        tools, offered = read_tools(request.tools or ())
        chat = ChatRequest.of(
            request,
            [*instructions, *_previous(request.previous_response_id, state), *_messages(request.input)],
            tools=tools or None,
            tool_choice=_tool_choice(request.tool_choice),
            parallel_tool_calls=request.parallel_tool_calls,
            max_completion_tokens=request.max_output_tokens,
            logprobs=LOGPROBS in (request.include or ()),
            response_format=_format(request.text),
        )
        return Asked(
            chat,
            lambda about: ResponsesAnswer(about, chat, offered, fields),  # the answer repeats tools, text and the like
            thread_start=None if request.store is False else len(instructions),
            ignored=GRAMMAR if has_grammar(request.tools or ()) else {},
        )


def _check(request: ResponsesRequest) -> None:
    if not request.input and request.previous_response_id is None:
        raise Refused("input is empty. Send text or at least one item.", param="input")
    if request.truncation not in (None, "auto", "disabled"):
        raise Refused(f"truncation is {request.truncation!r}. Use auto or disabled.", param="truncation")


def _previous(response: str | None, state: AttemptState) -> list[Message]:
    """The conversation that ended with an earlier response of this attempt, without its instructions, as at OpenAI."""
    if response is None:
        return []
    thread = state.threads.get(response.removeprefix(PREFIX))
    if thread is None:
        raise Refused(
            f"The gateway has no response {response!r}. It may belong to another attempt, have store=false, or be incomplete."
            " Instead of its id, send the whole conversation as input.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return [msgspec.convert(message, Message) for message in thread.messages]


def _messages(input: str | list[Item]) -> list[Message]:
    if isinstance(input, str):
        return [Message("user", input)] if input else []
    messages: list[Message] = []
    open_reply = False  # whether the last message is the assistant's and may get tool calls
    for i, item in enumerate(input):
        where = f"input[{i}]"
        match item.type:
            case "reasoning":
                continue
            case "message":
                if item.role not in ROLES:
                    raise Refused(f"{where}.role is {item.role!r}. Use one of {', '.join(ROLES)}.", param=f"{where}.role")
                messages.append(Message(item.role, _text(item.content, f"{where}.content")))
            case "function_call" | "custom_tool_call":
                if item.name is None or item.call_id is None:
                    raise Refused(f"{where} is a {item.type} without name or call_id. Add both.", param=where)
                if not open_reply:
                    messages.append(Message("assistant"))
                asked = messages[-1].tool_calls or []
                text = item.input or "" if item.type == "custom_tool_call" else None
                call = read_call(item.name, item.call_id, namespace=item.namespace, arguments=item.arguments, input=text)
                messages[-1].tool_calls = [*asked, call]
            case "function_call_output" | "custom_tool_call_output":
                if item.call_id is None:
                    raise Refused(f"{where}.call_id is missing. Add the id of the function call.", param=f"{where}.call_id")
                messages.append(Message("tool", _text(item.output, f"{where}.output"), tool_call_id=item.call_id))
            case _:
                raise Refused(
                    f"{where} is {item.type!r}. Use message, function_call, custom_tool_call, an output of these, or reasoning (which the "
                    "prompt omits).",
                    param=where,
                )
        open_reply = messages[-1].role == "assistant"
    return messages


def _text(content: str | list[dict[str, Any]] | None, where: str) -> str | list[Part]:
    if not isinstance(content, list):
        return content or ""
    parts: list[Part] = []
    for i, part in enumerate(content):
        text = part.get("refusal" if part.get("type") == "refusal" else "text")
        if part.get("type") not in ("input_text", "output_text", "text", "refusal") or not isinstance(text, str):
            raise Refused(f"{where}[{i}] is {part.get('type')!r}. Send text: only text content is supported.", param=f"{where}[{i}]")
        parts.append(Part("text", text))
    return parts


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if isinstance(choice, dict) and choice.get("type") in ("function", "custom") and "function" not in choice:
        return {"type": "function", "function": {"name": qualified(str(choice.get("name")), choice.get("namespace"))}}
    return choice


def _format(text: TextConfig | None) -> ResponseFormat | None:
    asked = None if text is None else text.format
    if asked is None:
        return None
    schema = None if asked.schema is None else JsonSchema(asked.name, asked.schema, asked.description, asked.strict)
    return ResponseFormat(asked.type, schema)
