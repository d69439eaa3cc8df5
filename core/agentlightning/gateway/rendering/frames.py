"""The texts around the parts of a reply: marks of the end of a turn, of reasoning and of content."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agentlightning.gateway.rendering.marked import (
    REPLY,
    TAG,
    THOUGHT,
    TOOLS,
    USER,
    asks,
    common_prefix,
    header,
    rendered,
    replies,
    result,
    shared,
)
from agentlightning.gateway.rendering.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Frames:
    """The texts around the parts of a reply, as the template writes them."""

    content: tuple[str, str] = ("", "")
    """Before and after the content."""
    reasoning: tuple[str, str] | None = None
    """Before and after the reasoning. None: the model has none."""
    closing: str = ""
    """After the whole reply: the mark that ends the turn, with the whitespace around it."""
    later_closing: str = ""
    """The same where messages follow. gpt-oss writes another mark then. Blank: the template leaves it out."""
    call_closing: str = ""
    """The same after a reply with tool calls."""
    next_turns: tuple[str, ...] = ()
    """Marks that begin the messages after a reply. They end a reply where no other mark does (GLM)."""


def reply_frames(template: ChatTemplate, tools: Sequence[Any]) -> Frames:
    """The frames of this template's replies, with an empty `call_closing`."""
    prompt = template.text([USER], tools)
    last = rendered(template, [USER, replies()], tools, reply=False) or ""
    if REPLY not in last:
        return Frames()
    lead, tail = last[common_prefix(prompt, last) : last.rindex(REPLY)], last.rpartition(REPLY)[2]
    reasoning = _reasoning(template, tools)
    if reasoning is not None:
        lead = _without_empty(lead, reasoning)
    tags, content_end = TAG.findall(tail), ""
    if len(tags) > 1 and lead.strip() and tail.startswith(tags[0]):
        content_end, tail = tags[0], tail[len(tags[0]) :]
    closing = turn_end(tail)
    later, next_turns = _following(template, tools, content_end, closing)
    return Frames((lead, content_end), reasoning, closing, later if closing else "", next_turns=() if closing.strip() else next_turns)


def turn_end(tail: str) -> str:
    """The end of a turn at the start of a text: a tag, with the whitespace around it."""
    match = re.match(rf"\s*({TAG.pattern})?\s*", tail)
    return match[0] if match is not None and match[1] else ""


def empty_reasoning(reasoning: tuple[str, str], *, opened: bool = False) -> str:
    """A pattern for a frame of reasoning without any. `opened`: or for its end alone."""
    return rf"\s*(?:{re.escape(reasoning[0].strip())}\s*){'?' if opened else ''}{re.escape(reasoning[1].strip())}\s*"


def _following(template: ChatTemplate, tools: Sequence[Any], content_end: str, closing: str) -> tuple[str, tuple[str, ...]]:
    """(the end mark of a reply where a user message follows, the first tags of the messages that can follow a reply)"""
    asked = rendered(template, [USER, replies(), USER], tools)
    if asked is None or REPLY not in asked:
        return "", ()
    tail = asked.rpartition(REPLY)[2].removeprefix(content_end).partition(USER["content"])[0]
    ask, first = TAG.match(header(template, tools).strip()), TAG.match(tail.lstrip())
    later = tail.partition(ask[0])[0] if ask is not None and ask[0] in tail else ""
    later = tail if first is not None and first[0] == closing.strip() else later
    loop = rendered(template, [USER, asks(), result()], TOOLS) or ""
    called = rendered(template, [USER, asks()], TOOLS, reply=False) or ""
    ends = [TAG.match(text.lstrip()) for text in (tail, loop[len(shared(loop, called)) :])]
    return turn_end(later), tuple(dict.fromkeys(match[0] for match in ends if match is not None))


def _reasoning(template: ChatTemplate, tools: Sequence[Any]) -> tuple[str, str] | None:
    """The frame of reasoning, in history or (DeepSeek R1) in the template's own text alone."""
    if template.accepts.reasoning_key is not None:
        for messages, offered in (
            ([USER, replies(THOUGHT)], tools),
            ([USER, asks(content=REPLY if template.accepts.content_beside_reasoning else "", thought=THOUGHT), result()], TOOLS),
        ):
            text = rendered(template, messages, offered, reply=False)
            prompt = rendered(template, [USER], offered)
            if text is not None and prompt is not None and THOUGHT in text:
                return _opening(text.partition(THOUGHT)[0], prompt), _reasoning_end(text, header(template, offered).strip())
    return ("<think>\n", "\n</think>\n\n") if "</think>" in "".join(template.sources.values()) else None


def _opening(before: str, prompt: str) -> str:
    """The end of a text that is no part of the prompt. Where the prompt opens the reasoning itself: the last tag."""
    opening = before[common_prefix(prompt, before) :]
    if TAG.search(opening) is None:
        match = re.search(rf"\n?({TAG.pattern})(\w+)?\s*$", before)
        return match[0] if match is not None else ""
    return opening


def _reasoning_end(text: str, ask: str) -> str:
    """The text after the reasoning: a tag, or (gpt-oss) everything up to the header of the next message."""
    after = text.partition(THOUGHT)[2].partition(REPLY)[0]
    if ask and ask in after:
        return after
    match = re.match(rf"\s*({TAG.pattern})\s*", after)
    return match[0] if match is not None else after


def _without_empty(lead: str, reasoning: tuple[str, str]) -> str:
    """The text before content, without an empty frame of reasoning."""
    for frame in (reasoning[0] + reasoning[1], reasoning[0].strip() + reasoning[1].strip()):
        if frame.strip():
            lead = lead.replace(frame, "", 1)
    return re.sub(empty_reasoning(reasoning, opened=True), "", lead, count=1) if lead.strip() else lead
