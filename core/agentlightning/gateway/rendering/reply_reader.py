"""Reads replies by the frames that the template taught: reasoning, content and tool calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from agentlightning.gateway.rendering.probe import Traits
from agentlightning.gateway.rendering.renderer import Parsed
from agentlightning.gateway.rendering.tool_format import CallFormat, Read
from agentlightning.gateway.rendering.tool_text import End, TextCalls


class ReplyReader:
    """The reading of one model's replies."""

    def __init__(self, traits: Traits, format: CallFormat | TextCalls) -> None:
        self._traits, self._frames, self._format = traits, traits.frames, format

    def opens(self, prompt: str) -> bool:
        """Whether a prompt opens the reasoning, so that the reply starts in it."""
        frame = self._frames.reasoning
        return frame is not None and bool(frame[0].strip()) and prompt.rstrip().endswith(frame[0].strip())

    def read(self, text: str, tools: Sequence[Any], *, opened: bool, prefix: str, end: End) -> Parsed:
        """A reply, or its beginning. `opened`: it starts in the reasoning. `prefix`: the forced beginning of a call."""
        if prefix:
            frame = self._frames.reasoning
            start = prefix.removeprefix(frame[1]) if frame is not None else prefix
            read = self._calls(text, tools, prefix=start, end=end)
            return Parsed(read.content, read.calls, None, read.problem)
        if self._traits.several_messages:
            return self._messages(text, tools, end)
        reasoning, body = None, text
        if self._frames.reasoning is not None:
            reasoning, body = self._split(text, opened, end)
        read = self._calls(body, tools, prefix="", end=end)
        return Parsed(self._content(read.content, end), read.calls, reasoning or None, read.problem)

    def _calls(self, body: str, tools: Sequence[Any], *, prefix: str, end: End) -> Read:
        if isinstance(self._format, TextCalls):
            content, calls = self._format.read(body, tools, prefix=prefix, end=end)
            return Read(content, calls)
        if not prefix:
            return self._format.read(body, tools, end=end)
        read = self._format.read(prefix + body, tools, end=end)
        return read if read.calls or end == "open" else Read(body, (), read.problem)

    def _split(self, text: str, opened: bool, end: End) -> tuple[str | None, str]:
        """(reasoning, the rest) of a reply."""
        assert self._frames.reasoning is not None
        opening, closing = (mark.strip() for mark in self._frames.reasoning)
        rest = text.lstrip()
        if not opened:
            if not rest.startswith(opening):
                return None, "" if end == "open" and opening.startswith(rest) else text
            rest = rest[len(opening) :]
        thought, mark, body = rest.partition(closing)
        return thought.strip("\n"), body.lstrip("\n") if mark else ""

    def _content(self, content: str, end: End) -> str:
        """Content without its frame."""
        lead, close = (mark.strip() for mark in self._frames.content)
        stripped = content.lstrip()
        if not lead:
            content = content.removeprefix(self._frames.content[0])
        elif stripped.startswith(lead):
            content = stripped[len(lead) :].lstrip("\n")
        elif end == "open" and lead.startswith(stripped):
            return ""
        if close:
            content = content.partition(close)[0]
            if end == "open":
                content = content[: len(content) - partial(content, close)]
        return content

    def _messages(self, text: str, tools: Sequence[Any], end: End) -> Parsed:
        """A reply of several messages (gpt-oss): thoughts, then text for the user, or a call."""
        assert self._frames.reasoning is not None
        thinks, closing = (mark.strip() for mark in self._frames.reasoning)
        lead = re.compile(r"\s*" + re.sub(r"(?<=>)\w+(?=<)", r"\\w+[^<>]*", re.escape(self._frames.content[0].strip())))
        thoughts, texts, calls, problem = list[str](), list[str](), list[Any](), None
        messages = text.split(self._traits.header)
        for number, message in enumerate(messages):
            last = number == len(messages) - 1 and end == "open"
            body = message[: len(message) - partial(message, self._traits.header)] if last else message
            match = lead.match(body)
            if body.lstrip().startswith(thinks):
                thoughts.append(body.lstrip()[len(thinks) :].partition(closing)[0].strip("\n"))
                continue
            read = self._calls(body, tools, prefix="", end=end if number == len(messages) - 1 else "whole")
            calls, problem = [*calls, *read.calls], read.problem or problem
            if match is not None and not read.calls:
                content = body[match.end() :].partition(closing)[0]
                texts.append(content[: len(content) - partial(content, closing)] if last else content)
            elif not last and not read.calls and body.strip():
                texts.append(body.partition(closing)[0])
        return Parsed("\n".join(texts), tuple(calls), "\n\n".join(filter(None, thoughts)) or None, problem)


def partial(text: str, mark: str) -> int:
    """Length of the end of a text that may begin a mark."""
    return next((size for size in range(min(len(mark), len(text)), 0, -1) if text.endswith(mark[:size])), 0)
