"""A renderer for any chat template. It derives everything from the template and the tokenizer, and checks what it derives.

A prompt is the template's own rendering. A later turn continues the sampled tokens: the conversation is rendered with a marker in place of
the reply, and the text that the template writes after the reply, up to the next one, is encoded and appended. This is right where the
text before the marker equals the earlier prompt, or differs only in an empty frame such as `<think></think>`. Where the template rewrites
history (it drops the reasoning of an earlier turn, or moves the tools), the prompt is rendered afresh and says why.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from agentlightning.contracts.rendering import RenderingSettings
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.rendering.frames import empty_reasoning
from agentlightning.gateway.rendering.jinja import fast_render
from agentlightning.gateway.rendering.marked import THOUGHT, TOOLS, USER, asks, common_prefix, rendered
from agentlightning.gateway.rendering.probe import Traits, probe
from agentlightning.gateway.rendering.renderer import Bridge, Conversation, Parsed, Renderer
from agentlightning.gateway.rendering.reply_reader import ReplyReader
from agentlightning.gateway.rendering.template import ChatTemplate
from agentlightning.gateway.rendering.tokens import Guarded, Tokens
from agentlightning.gateway.rendering.tool_format import CallFormat
from agentlightning.gateway.rendering.tool_text import End, TextCalls, describe_tools, has_arguments, takes_object, write_calls
from agentlightning.types import Completion, IntArray

EMPTY_FRAME = re.compile(r"(\s|<[^<>\n]*>|\[/?[A-Z_]+\])*")
TEXT_NOTE = (
    "The chat template of this model has no tool calls. The gateway describes tools in the system message, and the model calls one with a "
    "line CALL tool(argument)."
)
SHOWN_NOTE = "The chat template of this model shows no tools. The gateway describes them in the system message."
log = logging.getLogger("agentlightning.gateway")
REASONING, CONTENT, ARGUMENT = (f"agl{secrets.token_hex(8)}{part}" for part in "abc")
"""Markers of the parts of a reply, drawn anew in each process so that no conversation has them."""
TAIL = 48
"""Tokens at the end of a prompt that can open the reasoning."""


class TemplateRenderer(Renderer):
    """See the module. Raises `Refused` for a template that renders no conversation."""

    def __init__(self, tokens: Tokens, settings: RenderingSettings, eos: Sequence[int] = (), *, name: str = "template") -> None:
        self.name, self._tokens, self._settings = name, tokens, settings
        arguments = settings.template_arguments
        template = ChatTemplate(tokens.tokenizer, settings.chat_template, arguments, fast_render(tokens.tokenizer, arguments))
        traits = probe(template)
        self.traits = replace(traits, calls=None, writes_calls=False) if name == "text" else traits
        self.format: CallFormat | TextCalls = self.traits.calls or TextCalls()
        self._reader = ReplyReader(self.traits, self.format)
        text_protocol = self.traits.calls is None
        describes = text_protocol or not self.traits.shows_tools
        self.template = replace(
            template,
            accepts=self.traits.accepts,
            says_tools=partial(describe_tools, format=self.format) if describes else None,
            writes_calls=None if self.traits.writes_calls else self._spelled,
        )
        self.stop_ids, self.stop_strings, notes = stops(tokens, self.traits, eos)
        self.notes = tuple(notes)
        self.tool_note = ("" if name == "text" else TEXT_NOTE) if text_protocol else SHOWN_NOTE if describes else ""
        """What the user should know when an agent offers tools."""
        self._noted = False

    # --- prompts ---

    def prompt(self, conversation: Conversation) -> list[int]:
        """See `Renderer.prompt`."""
        if conversation.tools and self.tool_note and not self._noted:
            self._noted = True
            log.warning("%s (This warning appears once.)", self.tool_note)
        guarded, conversation = self._guarded(conversation)
        if conversation.unfinished:
            return self._tokens.encode(self._unfinished(conversation), guarded)
        return self._tokens.encode(self._text(conversation, conversation.messages, reply=conversation.asks), guarded)

    def bridge(self, earlier: Completion, conversation: Conversation, end: int) -> Bridge:
        """See `Renderer.bridge`."""
        guarded, conversation = self._guarded(conversation)
        before, reply, new = conversation.messages[: end - 1], conversation.messages[end - 1], conversation.messages[end:]
        calls = bool(reply.get("tool_calls")) and self.traits.writes_calls
        marked = [*before, _marked(reply, calls=calls), *new]
        text = self._text(conversation, marked)
        tail = self._after_reply(text, calls)
        if tail is None:
            return Bridge(None, "rewritten: template")
        if self._settings.history == "template":
            cause = self._rewritten(conversation, before, marked, text)
            if cause is not None:
                return Bridge(None, f"rewritten: {cause}")
        return Bridge(tuple(self._continued(earlier, tail, guarded)))

    def _text(self, conversation: Conversation, messages: Sequence[Mapping[str, Any]], *, reply: bool = True) -> str:
        return self.template.text(messages, conversation.tools, reply=reply, when=conversation.when, arguments=conversation.arguments)

    def _guarded(self, conversation: Conversation) -> tuple[Guarded | None, Conversation]:
        if self._settings.special_tokens:
            return None, conversation
        guarded = self._tokens.guard()
        messages = [guarded.message(message) for message in conversation.messages]
        return guarded, replace(conversation, messages=messages, tools=guarded.value(list(conversation.tools)))

    def _unfinished(self, conversation: Conversation) -> str:
        """The text up to the end of the last message, which the reply continues."""
        *before, last = conversation.messages
        text = self._text(conversation, [*before, {**last, "content": CONTENT}], reply=False)
        return text.partition(CONTENT)[0] + str(last.get("content") or "")

    def _after_reply(self, text: str, calls: bool) -> str | None:
        """The text that follows the reply in a marked rendering. None: the reply is not there."""
        frames = self.traits.frames
        if calls and ARGUMENT in text:
            after = text.rpartition(ARGUMENT)[2]
            if frames.call_closing:
                at = after.find(frames.call_closing)
                return after[at:] if at >= 0 else None
            tail = self.traits.calls.value_tail if self.traits.calls is not None else ""
            return after[len(tail) :] if after.startswith(tail) else None
        if CONTENT not in text:
            return None
        return text.rpartition(CONTENT)[2].removeprefix(frames.content[1])

    def _rewritten(
        self, conversation: Conversation, before: Sequence[Mapping[str, Any]], marked: Sequence[Mapping[str, Any]], text: str
    ) -> str | None:
        """What the template changes in the history that the earlier prompt had. None: nothing."""
        if marked[len(before)].get("reasoning_content") and REASONING not in text:
            return "thinking"
        if self._intact(conversation, before, text):
            return None
        if any(message.get("reasoning_content") for message in before):
            plain = [{key: value for key, value in message.items() if key != "reasoning_content"} for message in before]
            if self._intact(conversation, plain, text):
                return "thinking"
        alone = replace(conversation, tools=())
        return "tools" if conversation.tools and self._intact(alone, before, self._text(alone, marked)) else "template"

    def _intact(self, conversation: Conversation, before: Sequence[Mapping[str, Any]], text: str) -> bool:
        """Whether a marked rendering starts with the earlier prompt, apart from an empty frame."""
        prompt = self._text(conversation, before)
        if text.startswith(prompt):
            return True
        try:
            history = self._text(conversation, before, reply=False)
        except Refused:
            history = prompt
        if len(history) < len(prompt) and prompt.startswith(history) and text.startswith(history):
            return True
        rest = prompt[common_prefix(prompt, text) :]
        return self._is_frame(rest) or self._is_frame(rest.rstrip().removesuffix(self.traits.header))

    def _continued(self, earlier: Completion, tail: str, guarded: Guarded | None) -> list[int]:
        """The ids of the text after a reply. An end mark that the model wrote is not written again."""
        response: list[int] = earlier.response_ids.tolist()
        last = self._tokens.added.get(response[-1]) if response else None
        if last is not None and response[-1] in self.stop_ids and tail.lstrip().startswith(str(last.content)):
            ids = self._tokens.encode(tail.lstrip(), guarded)  # with the mark, which may swallow the whitespace after it
            if ids and ids[0] == response[-1]:
                return ids[1:]
        ends = [mark.strip() for mark in (self.traits.frames.closing, self.traits.frames.later_closing)]
        if last is not None and str(last.content) == ends[0] and ends[1] and tail.lstrip().startswith(ends[1]):
            return self._tokens.encode(tail.lstrip(), guarded)[1:]  # the last turn of a conversation ends with another mark
        for stop in self.stop_strings:
            if self._tokens.decode(response).endswith(stop) and tail.lstrip().startswith(stop):
                tail = tail.lstrip().removeprefix(stop)
                break
        return self._tokens.encode_after(response[-1] if response else None, tail, guarded)

    # --- replies ---

    def prefill(self, tool: str | None, conversation: Conversation) -> str:
        """See `Renderer.prefill`. Reasoning that the prompt opens is closed first, and JSON arguments are opened."""
        start, reasoning = self.format.prefill(tool), self.traits.frames.reasoning
        if self._opens_object(tool, conversation.tools):
            start += '{"'
        if not start:
            raise Refused("This model names a tool without any mark before it. Name the tool in tool_choice.", param="tool_choice")
        if reasoning is not None and self._reader.opens(self._text(conversation, conversation.messages)):
            return f"{self._closing_before_call(reasoning[1])}{start}"
        return start

    def _opens_object(self, tool: str | None, tools: Sequence[Any]) -> bool:
        """Whether the arguments of a forced call begin as a JSON object."""
        if isinstance(self.format, TextCalls):
            return takes_object(tool, tools)
        return self.format.kind in ("object", "header") and has_arguments(tool, tools)

    def _closing_before_call(self, closing: str) -> str:
        """The end of the reasoning as the template writes it before a call."""
        text = (rendered(self.template, [USER, asks(thought=THOUGHT)], TOOLS, reply=False) or "").rpartition(THOUGHT)[2]
        first = self.format.before.strip() if isinstance(self.format, CallFormat) else ""
        match = re.compile(rf"\s*{re.escape(closing.strip())}\s*(?={re.escape(first)})").match(text) if first else None
        return closing if match is None else match[0]

    def parse(
        self, ids: Sequence[int], text: str, prompt: IntArray, tools: Sequence[Any], *, prefix: str = "", end: End, hidden: str | None
    ) -> Parsed:
        """See `Renderer.parse`."""
        opened = self.traits.frames.reasoning is not None and self._reader.opens(self._tokens.decode(prompt[-TAIL:].tolist()))
        return self._reader.read(text, tools, opened=opened, prefix=prefix, end=end)

    def written(self, conversation: Conversation, message: Mapping[str, Any]) -> str | None:
        """See `Renderer.written`."""
        frames, prompt = self.traits.frames, self._text(conversation, conversation.messages)
        opened, ended = self._reader.opens(prompt), self._closes(prompt)
        if ended:
            message = {key: value for key, value in message.items() if key != "reasoning_content"}
        if not self.traits.writes_calls:
            content = self._spelled(str(message.get("content") or ""), message.get("tool_calls") or (), conversation.tools)
            return self._thinking(message, opened) + content
        text = self._text(conversation, [*conversation.messages, message], reply=False)
        reply = self._after_prompt(prompt, text, opened)
        if reply is None:
            return None
        if frames.reasoning is not None and self.traits.accepts.reasoning_key is None:
            reply = self._thinking(message, opened) + reply.removeprefix(frames.reasoning[1] if opened else "")
        closing = frames.call_closing if message.get("tool_calls") else frames.closing
        if not closing.strip():
            return reply
        at = reply.rfind(closing.strip())
        if at < 0:
            return None
        reply = reply[:at].removesuffix(closing[: len(closing) - len(closing.lstrip())])
        return self._one_turn(reply, closing.strip()) if message.get("content") and message.get("tool_calls") else reply

    def _one_turn(self, reply: str, closing: str) -> str:
        """A reply that the template writes as a turn with content and one with calls, as one."""
        header, _, rest = self.traits.header.partition("\n")
        if not header or self.traits.several_messages:
            return reply
        return re.sub(rf"\s*{re.escape(closing)}\s*{re.escape(header)}\s*({re.escape(rest)})?\s*", "\n", reply)

    def _after_prompt(self, prompt: str, text: str, opened: bool) -> str | None:
        """The text of a reply at the end of a history. None: the template writes another frame there."""
        if text.startswith(prompt):
            return text[len(prompt) :]
        frame = self.traits.frames.reasoning
        trimmed = prompt.rstrip().removesuffix(frame[0].strip()) if opened and frame is not None else prompt
        size = common_prefix(trimmed, text)
        if self._is_frame(trimmed[size:]):
            reply = text[size:]
        elif self.traits.header and self.traits.header in text:
            return text.rpartition(self.traits.header)[2].lstrip("\n")
        else:
            return None
        if not opened or frame is None:
            return reply
        if reply.lstrip().startswith(frame[0].strip()):
            return reply.lstrip()[len(frame[0].strip()) :].lstrip("\n")
        return frame[1] + reply

    def _is_frame(self, text: str) -> bool:
        """Whether a text is marks alone: of a turn, or of reasoning without any."""
        if self.traits.frames.reasoning is not None:
            text = re.sub(empty_reasoning(self.traits.frames.reasoning), "", text)
        return EMPTY_FRAME.fullmatch(text) is not None

    def _spelled(self, content: str, calls: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> str:
        """A message with calls, where the template writes none."""
        if isinstance(self.format, TextCalls):
            return write_calls(content, calls, tools)
        return self.format.write(content, calls) if calls else content

    def _thinking(self, message: Mapping[str, Any], opened: bool) -> str:
        """The reasoning of a reply, in its frame."""
        frame, thought = self.traits.frames.reasoning, message.get("reasoning_content")
        if frame is None or not (opened or thought):
            return ""
        return f"{'' if opened else frame[0].lstrip()}{thought or ''}{frame[1]}"

    def _closes(self, prompt: str) -> bool:
        """Whether the prompt ends with an empty frame of reasoning, so that the reply has none."""
        frame = self.traits.frames.reasoning
        return frame is not None and re.search(empty_reasoning(frame) + r"\Z", prompt[-200:]) is not None


def stops(tokens: Tokens, traits: Traits, eos: Sequence[int]) -> tuple[tuple[int, ...], tuple[str, ...], list[str]]:
    """(stop ids, stop strings, notes) from `generation_config.json` (`eos`), the tokenizer's end token, and the template's mark."""
    own: Any = tokens.tokenizer.eos_token_id
    ids: list[int] = list(dict.fromkeys([*eos, *([own] if isinstance(own, int) else [])]))
    frames = traits.frames
    marks = list(dict.fromkeys(mark.strip() for mark in (frames.closing, frames.call_closing) if mark.strip()))
    marks = marks or [mark for mark in frames.next_turns if mark in tokens.by_text]
    written = [(mark, tokens.by_text.get(mark)) for mark in marks]
    notes: list[str] = []
    if not marks or any(id in ids for _, id in written):
        return tuple(ids), (), notes
    names = ", ".join(repr(tokens.decode([id])) for id in ids) or "no token"
    if eos:
        notes.append(
            f"The chat template ends a turn with {marks[0]!r}, and generation_config.json ends a reply with {names}. Replies end with both."
        )
    token_ids = [id for _, id in written if id is not None]
    return tuple(dict.fromkeys([*token_ids, *ids])), tuple(mark for mark, id in written if id is None), notes


def _marked(reply: Mapping[str, Any], *, calls: bool) -> dict[str, Any]:
    """A reply with markers as reasoning, content and last argument. Not `calls`: its tool calls are part of the content."""
    marked = {**reply} if calls else {**reply, "content": CONTENT}
    if reply.get("reasoning_content"):
        marked["reasoning_content"] = REASONING
    if not calls:
        marked.pop("tool_calls", None)
    else:
        *earlier, last = reply["tool_calls"]
        last = {**last, "function": {**last["function"], "arguments": json.dumps({"aglargument": ARGUMENT})}}
        marked["tool_calls"] = [*earlier, last]
    return marked
