"""`/v1/messages`: Anthropic's form, read into the canonical request.

An answer comes back in the next request as the same conversation. Tool calls keep their ids. Messages drop thinking, and a bridge keeps its
tokens. The canonical form has no `is_error`: a result describes its error as text. A `thinking` setting shows the thoughts of a reasoning
model. It sets no budget.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import msgspec

from agentlightning.gateway.api.answers import encode
from agentlightning.gateway.api.anthropic_messages_answer import PREFIX, MessagesAnswer, error_body
from agentlightning.gateway.api.parameters import MESSAGES
from agentlightning.gateway.api.protocol import Asked, Form
from agentlightning.gateway.api.schema import (
    ChatRequest,
    Function,
    JsonSchema,
    Message,
    Refused,
    ResponseFormat,
    Settings,
    Tool,
    ToolCall,
    ToolFunction,
)  # fmt: skip
from agentlightning.gateway.api.tool_arguments import unmarked_input
from agentlightning.gateway.auth import AttemptState


class Block(msgspec.Struct):
    """One block of a message's content, of any type."""

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None


class Turn(msgspec.Struct):
    """One message."""

    role: str
    content: str | list[Block]


class OfferedTool(msgspec.Struct):
    """A tool that the model may call."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct):
    """The rule for tool calls in the reply."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    """Whether the answer shows the model's thoughts."""

    type: str


class OutputFormat(msgspec.Struct):
    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct):
    format: OutputFormat | None = None


class Thread(msgspec.Struct):
    """A conversation that the gateway keeps: begun by this request, or continued after an earlier answer."""

    type: str
    previous_message_id: str | None = None


class MessagesRequest(Settings, kw_only=True):
    """The body of `/v1/messages`."""

    messages: list[Turn]
    system: str | list[Block] | None = None
    tools: list[OfferedTool] | None = None
    tool_choice: ToolChoice | None = None
    stop_sequences: list[str] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """The older name of `output_config.format`."""
    thread: Thread | None = None

    @property
    def stops(self) -> list[str]:
        """The texts that end a reply, by Anthropic's name, or by that of other servers."""
        other = [self.stop] if isinstance(self.stop, str) else self.stop
        return self.stop_sequences or other or []

    @property
    def shows_thinking(self) -> bool:
        return self.thinking is not None and self.thinking.type != "disabled"


CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class MessagesForm(Form[MessagesRequest]):
    """See `Form`."""

    path = "/v1/messages"
    body = MessagesRequest
    parameters = MESSAGES
    names: ClassVar[Mapping[str, str]] = {"stop$": "stop_sequences", r"(tools\[\d+\])\.function\.parameters": r"\1.input_schema"}

    def read(self, request: MessagesRequest, fields: dict[str, Any], state: AttemptState) -> Asked:
        """See `Form.read`."""
        if request.max_tokens is None:
            raise Refused("max_tokens is missing. Set the limit of the reply.", param="max_tokens")
        stops, thread = request.stops, request.thread
        chat = canonical_request(request, *_thread_so_far(request, state))
        return Asked(
            chat,
            lambda about: MessagesAnswer(about, stops, request.shows_thinking),
            thread_start=None if thread is None else 0,
        )

    def error(self, refusal: Refused) -> bytes:
        """See `Form.error`."""
        return encode(error_body(self.renamed(refusal)))


def canonical_request(asked: MessagesRequest, earlier: Sequence[Message] = (), tools: Sequence[Tool] = ()) -> ChatRequest:
    """The request in the canonical form, with the messages and tools of the thread that it continues. Raises `Refused`."""
    messages = [*earlier, *_messages(asked)]
    tools = tools or [_tool(tool, f"tools[{i}]") for i, tool in enumerate(asked.tools or ())]
    if earlier and not asked.messages:
        raise Refused("messages is empty, so nothing follows in this thread. Send at least one message.", param="messages")
    last = messages[-1] if messages else None
    if last is not None and last.tool_calls:
        raise Refused("The last message is a tool call of the assistant, and nothing continues it. Add its tool_result.", param="messages")
    continues = last is not None and last.role == "assistant"  # in this form, the reply continues such a message
    choice = asked.tool_choice
    return ChatRequest.of(
        asked,
        messages,
        stop=asked.stops,
        continue_final_message=True if continues else asked.continue_final_message,
        tools=list(tools) or None,
        tool_choice=None if choice is None else _tool_choice(choice, [tool.function.name for tool in tools]),
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
        response_format=_format(asked),
    )


def _thread_so_far(asked: MessagesRequest, state: AttemptState) -> tuple[list[Message], list[Tool]]:
    """The messages, with the system prompt, and the tools of the thread that a request continues. Raises `Refused`, with a code by which
    clients send the whole conversation instead."""
    thread = asked.thread
    if thread is None or thread.type == "create":
        return [], []
    if thread.type != "continue" or thread.previous_message_id is None:
        raise Refused('thread is neither {"type": "create"} nor {"type": "continue", "previous_message_id": ID}. Send one.', param="thread")
    kept = state.threads.get(thread.previous_message_id.removeprefix(PREFIX))
    if kept is None:
        raise Refused(
            f"The gateway has no thread that ends with the message {thread.previous_message_id!r}. It may belong to another attempt, or "
            'be incomplete. Send the whole conversation, with thread = {"type": "create"}.',
            status=404, param="thread", code="thread_not_found",
        )  # fmt: skip
    for name in ("system", "tools"):
        if getattr(asked, name) is not None:
            raise Refused(
                f"{name} is not allowed in a request that continues a thread, because the thread has its own. Leave it out, or send the "
                'whole conversation with thread = {"type": "create"}.',
                param=name, code="thread_fingerprint_mismatch",
            )  # fmt: skip
    return msgspec.convert(kept.messages, list[Message]), msgspec.convert(kept.tools, list[Tool])


def _messages(asked: MessagesRequest) -> list[Message]:
    messages: list[Message] = []
    system = _text(asked.system, "system")
    if system:
        messages.append(Message("system", system))
    for i, turn in enumerate(asked.messages):
        where = f"messages[{i}]"
        if turn.role == "assistant":
            messages.append(_assistant(turn.content, where))
        elif turn.role == "system":
            messages.append(Message("system", _text(turn.content, f"{where}.content")))
        elif turn.role == "user":
            messages += _user(turn.content, where)
        else:
            raise Refused(f"{where}.role is {turn.role!r}. Use user, assistant or system.", param=f"{where}.role")
    return messages


def _user(content: str | list[Block], where: str) -> list[Message]:
    """Results of tools, each as its own message, and the user's text between them."""
    if isinstance(content, str):
        return [Message("user", content)]
    messages: list[Message] = []
    for i, block in enumerate(content):
        at = f"{where}.content[{i}]"
        if block.type == "tool_result":
            if block.tool_use_id is None:
                raise Refused(f"{at}.tool_use_id is missing. Add the id of the tool_use.", param=at)
            messages.append(Message("tool", _text(block.content, f"{at}.content"), tool_call_id=block.tool_use_id))
        else:
            text = _block_text(block, at)
            if messages and messages[-1].role == "user":
                messages[-1].content = f"{messages[-1].content}{text}"
            else:
                messages.append(Message("user", text))
    return messages or [Message("user", "")]


def _assistant(content: str | list[Block], where: str) -> Message:
    if isinstance(content, str):
        return Message("assistant", content)
    text = ""
    calls: list[ToolCall] = []
    for i, block in enumerate(content):
        at = f"{where}.content[{i}]"
        if block.type == "tool_use":
            input: Any = block.input
            if block.id is None or block.name is None or not isinstance(input, dict):
                raise Refused(f"{at} is not a complete tool_use. Add id, name, and an input object.", param=at)
            calls.append(ToolCall(Function(block.name, _arguments(cast("dict[str, Any]", input))), block.id))
        elif block.type not in ("thinking", "redacted_thinking"):
            text += _block_text(block, at)
    return Message("assistant", text, tool_calls=calls or None)


def _arguments(input: dict[str, Any]) -> str:
    text = unmarked_input(input)
    return json.dumps(input, ensure_ascii=False) if text is None else text


def _text(content: str | Sequence[Block] | None, where: str) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(_block_text(block, f"{where}[{i}]") for i, block in enumerate(content))


def _block_text(block: Block, where: str) -> str:
    if block.type != "text" or block.text is None:
        raise Refused(f"{where} is {block.type!r}. Send text: only text content is supported.", param=where)
    return block.text


def _tool(tool: OfferedTool, where: str) -> Tool:
    if tool.type not in (None, "custom"):
        raise Refused(
            f"{where} is the server tool {tool.type!r}, and the gateway runs no tools. Offer tools that the agent runs, with a name and an "
            "input_schema and without a type.",
            param=f"{where}.type",
        )
    return Tool(function=ToolFunction(tool.name, tool.description, tool.input_schema, tool.strict))


def _tool_choice(choice: ToolChoice, names: Sequence[str]) -> str | dict[str, Any]:
    if choice.type != "tool":
        if choice.type not in CHOICES:
            raise Refused(f"tool_choice.type is {choice.type!r}. Use auto, any, tool or none.", param="tool_choice.type")
        return CHOICES[choice.type]
    if choice.name not in names:
        raise Refused(f"tool_choice.name is {choice.name!r}. Name one of the tools {list(names)}.", param="tool_choice.name")
    return {"type": "function", "function": {"name": choice.name}}


def _format(asked: MessagesRequest) -> ResponseFormat | None:
    format = asked.output_format if asked.output_config is None else asked.output_config.format
    if format is None:
        return None
    if format.type != "json_schema":
        raise Refused(f"The type of the output format is {format.type!r}. Use json_schema.", param="output_config.format.type")
    return ResponseFormat("json_schema", JsonSchema("output", format.schema))
