"""A renderer for ChatML models that the `renderers` library does not know, with tools as text.

Without tools a conversation renders to exactly the bytes of the tokenizer's own template, with its default system prompt. Sampled tokens
are never rendered again: a bridge starts with exactly the earlier prompt and response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from agentlightning.gateway.rendering.tool_text import End, ToolCall, call_prefix, describe_tools, read_reply, write_calls

if TYPE_CHECKING:
    from renderers import ParsedResponse, RenderedTokens  # pyright: ignore[reportMissingTypeStubs]

START, END = "<|im_start|>", "<|im_end|>"
REPLY = f"{START}assistant\n"


class ChatMLRenderer:
    """Implements `renderers.Renderer`. Its further methods `read_text`, `write_text` and `prefill` are optional for renderers."""

    supports_tools = True
    is_prefix_stable = True

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._end: int = tokenizer.convert_tokens_to_ids(END)
        self._system = _default_system(tokenizer)

    @staticmethod
    def fits(tokenizer: Any) -> bool:
        """True for a tokenizer whose template is plain ChatML without tools."""
        ids = [tokenizer.convert_tokens_to_ids(mark) for mark in (START, END)]
        if any(not isinstance(i, int) or i == tokenizer.unk_token_id for i in ids):
            return False
        template = getattr(tokenizer, "chat_template", None)
        if not isinstance(template, str) or "tools" in template:
            return False
        probe = [{"role": role, "content": f" {role}\n "} for role in ("user", "assistant", "user")]
        renderer = ChatMLRenderer(tokenizer)
        return all(
            renderer._text(messages) == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            for messages in (probe, [{"role": "system", "content": "s"}, *probe])
        )

    def render(self, messages: Sequence[Any], *, tools: Sequence[Any] | None = None, add_generation_prompt: bool = False) -> RenderedTokens:
        """See `renderers.Renderer.render`. (The optional masks are left empty.)"""
        pieces = self._pieces(messages, tools)
        return self._tokens([], [*pieces, (REPLY, -1)] if add_generation_prompt else pieces, messages)

    def render_ids(self, messages: Sequence[Any], *, tools: Sequence[Any] | None = None, add_generation_prompt: bool = False) -> list[int]:
        """The same, ids only."""
        return self.render(messages, tools=tools, add_generation_prompt=add_generation_prompt).token_ids

    def parse_response(
        self, token_ids: list[int], *, tools: Sequence[Any] | None = None, prompt_ids: list[int] | None = None
    ) -> ParsedResponse:
        """See `renderers.Renderer.parse_response`."""
        from renderers import ParsedResponse, ParsedToolCall  # pyright: ignore[reportMissingTypeStubs]

        ids = token_ids[: token_ids.index(self._end)] if self._end in token_ids else token_ids
        prompt: str = self._tokenizer.decode(prompt_ids[-64:]) if prompt_ids else REPLY
        content, calls = read_reply(self._tokenizer.decode(ids), tools, prefix=prompt.rpartition(REPLY)[2] if REPLY in prompt else "")
        return ParsedResponse(
            content=content,
            tool_calls=[ParsedToolCall(raw=call_prefix(c.name) + c.arguments, name=c.name, arguments=c.arguments) for c in calls],
        )

    def get_stop_token_ids(self) -> list[int]:
        """The mark that ends a turn, and the tokenizer's end of text."""
        eos: int | None = self._tokenizer.eos_token_id
        return [self._end] if eos is None or eos == self._end else [self._end, eos]

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: list[int],
        previous_completion_ids: list[int],
        new_messages: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
    ) -> RenderedTokens | None:
        """See `renderers.Renderer.bridge_to_next_turn`. A response without the mark that ends a turn gets it as context."""
        if not new_messages or any(message["role"] not in ("user", "tool", "system") for message in new_messages):
            return None
        previous = [*previous_prompt_ids, *previous_completion_ids]
        if not previous_completion_ids or previous[-1] != self._end:
            previous.append(self._end)
        pieces = [(_turn(message, None), i) for i, message in enumerate(new_messages)]
        return self._tokens(previous, [("\n", -1), *pieces, (REPLY, -1)], new_messages)

    def read_text(self, text: str, tools: Sequence[Mapping[str, Any]] | None, *, prefix: str, end: End) -> tuple[str, tuple[ToolCall, ...]]:
        """Content and tool calls of a reply, or of its beginning."""
        return read_reply(text, tools, prefix=prefix, end=end)

    def write_text(self, message: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> str:
        """The text of an assistant message in the model's own form, without the end mark."""
        return write_calls(_content(message), message.get("tool_calls") or (), tools)

    def prefill(self, tool: str | None) -> str:
        """The end of a prompt that makes the reply a call of this tool; None: of any tool."""
        return call_prefix(tool)

    def _text(self, messages: Sequence[Any]) -> str:
        return "".join(text for text, _ in self._pieces(messages, None)) + REPLY

    def _pieces(self, messages: Sequence[Any], tools: Sequence[Any] | None) -> list[tuple[str, int]]:
        """(text, index of its message). Every piece starts at a mark, so pieces encode one by one."""
        own = bool(messages) and messages[0]["role"] == "system"
        system = _content(messages[0]) if own else self._system
        if tools:
            system = f"{system}\n\n{describe_tools(tools)}" if system else describe_tools(tools)
        head = [] if system is None else [(f"{START}system\n{system}{END}\n", 0 if own else -1)]
        return head + [(_turn(message, tools), i) for i, message in enumerate(messages) if i or not own]

    def _tokens(self, ids: list[int], pieces: Sequence[tuple[str, int]], messages: Sequence[Any]) -> RenderedTokens:
        from renderers import RenderedTokens, extract_message_tool_names  # pyright: ignore[reportMissingTypeStubs]

        indices = [-1] * len(ids)
        for text, index in pieces:
            new: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
            ids = ids + new
            indices += [index] * len(new)
        return RenderedTokens(
            token_ids=ids,
            message_indices=indices,
            message_roles=[message["role"] for message in messages],
            message_tool_names=extract_message_tool_names(list(messages)),
        )


def _turn(message: Any, tools: Sequence[Any] | None) -> str:
    content = _content(message)
    if message.get("tool_calls"):
        content = write_calls(content, message["tool_calls"], tools)
    return f"{START}{message['role']}\n{content}{END}\n"


def _content(message: Any) -> str:
    content: Any = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in cast("list[dict[str, str]]", content))
    return content or ""


def _default_system(tokenizer: Any) -> str | None:
    """The system prompt that the template adds to a conversation without one."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    text: str = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    head, mark, _ = text.partition(f"{END}\n{START}user\n")
    return head.removeprefix(f"{START}system\n") if mark and head.startswith(f"{START}system\n") else None
