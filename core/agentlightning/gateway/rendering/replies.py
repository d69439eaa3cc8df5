"""One reply during its generation. It keeps every sampled token. Its text has no half characters, and ends before a stop string."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from agentlightning.contracts.engine import Engine
from agentlightning.gateway.rendering.renderer import Parsed, Rendering
from agentlightning.gateway.rendering.tool_text import End, is_object
from agentlightning.types import FinishReason, FloatArray, IntArray, Sampling, ints, new_id


class Detokenizer:
    """Ids to text, piece by piece, never half a character."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = self._read = 0  # ids from here are decoded again for context; ids to here are text

    def feed(self, ids: Sequence[int], *, final: bool = False) -> str:
        """The text that is certain after these ids; with `final` all the rest."""
        self._ids.extend(ids)
        if self._read == len(self._ids):
            return ""
        before = self._decode(self._ids[self._start : self._read])
        # a character has at most four bytes, so at most three tokens at the end wait for the rest of theirs
        end, text = len(self._ids), before
        for waiting in range(0, 1 if final else min(4, len(self._ids) - self._read)):
            end = len(self._ids) - waiting
            text = self._decode(self._ids[self._start : end])
            if final or not text.endswith("\ufffd"):
                break
        else:
            if len(self._ids) - self._read < 4:
                return ""
            # what comes before the last three is broken; these may yet begin a character
        self._start, self._read = self._read, end
        return text[len(before) :]


@dataclass(slots=True)
class Piece:
    """The part of a reply from one chunk of the engine."""

    start: int
    end: int
    """Tokens of the reply, from and to."""
    text: str
    """New content that is certain."""


@dataclass(slots=True)
class Reply:
    """One choice of one call."""

    rendering: Rendering
    prompt_ids: IntArray
    sampling: Sampling
    tools: Sequence[Any]
    prefix: str = ""
    """See `Prompt.prefix`."""
    single: bool = False
    """True: the answer has at most one tool call."""
    raw: bool = False
    """True: its text is the answer, instead of a message."""
    id: str = field(default_factory=new_id)
    """Of its completion, so that a second write is the same record."""
    ids: list[int] = field(default_factory=list[int])
    text: str = ""
    """The visible part: no end mark, nothing from the stop string on."""
    finish: FinishReason | None = None
    _scores: list[FloatArray | None] = field(default_factory=list["FloatArray | None"])
    _versions: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """A version, and the number of its tokens."""
    _hidden: str | None = None
    _sent: int = 0
    _read: Parsed | None = None
    """The whole reply, read."""

    async def run(self, engine: Engine, rollout: str | None = None, *, streams: bool = False) -> AsyncGenerator[Piece]:
        """Generate to the end, for a rollout by its id. Yields pieces if the answer `streams`. Closing it aborts the engine."""
        detokenizer, reads_along = Detokenizer(self.rendering.decode), streams or bool(self.sampling.stop)
        stream = cast("AsyncGenerator[Any]", engine.generate(self.prompt_ids, self.sampling, rollout=rollout))
        try:
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    start, new = len(self.ids), chunk.ids.tolist()
                    taken = self._read_chunk(detokenizer, new, chunk.finish) if reads_along else len(new)
                    self.ids += new[:taken]
                    self._scores.append(None if chunk.logprobs is None else chunk.logprobs[:taken])
                    self._versions.append((chunk.version, taken))
                    self.finish = "stop" if self._hidden is not None else chunk.finish
                    if streams:
                        yield Piece(start, len(self.ids), self._grown())
                    if self.finish is not None:
                        return
        finally:
            if not reads_along:
                ids = self.ids[: len(self.ids) - self._is_marked]
                self.text = detokenizer.feed(ids, final=self.finish is not None)

    def _read_chunk(self, detokenizer: Detokenizer, new: list[int], finish: FinishReason | None) -> int:
        """Read the text of new tokens. Returns the number of them up to the end of the first stop string."""
        shown = new[:-1] if finish is not None and new and new[-1] in self.sampling.stop_ids else new
        before = self.text
        self.text += detokenizer.feed(shown, final=finish is not None)
        return self._needed(before, len(self.ids), new) if self._find_stop(len(before)) else len(new)

    def _find_stop(self, before: int) -> bool:
        """Cut the text at the first stop string, looking only where new text can have completed one."""
        earliest: tuple[int, str] | None = None
        for stop in self.sampling.stop:
            at = self.text.find(stop, max(0, before - len(stop) + 1))
            if at >= 0 and (earliest is None or at < earliest[0]):
                earliest = (at, stop)
        if earliest is not None:
            self.text, self._hidden = self.text[: earliest[0]], earliest[1]
        return earliest is not None

    def _needed(self, before: str, start: int, new: list[int]) -> int:
        """The number of new tokens that complete the stop string. The engine would have stopped there."""
        full = self.rendering.decode
        target = f"{self.text}{self._hidden}"
        for count in range(1, len(new)):
            if full([*self.ids[:start], *new[:count]]).startswith(target):
                return count
        return len(new)

    def _grown(self) -> str:
        """Content that is certain since the last call."""
        if self.finish is None and not self.rendering.renderer.streams_calls and self.tools:
            return ""
        content = self.parsed("open").content if self.finish is None else self.read().content
        if self.finish is None:
            content = content[: len(content) - self._held(content)]
        new, self._sent = content[self._sent :], max(self._sent, len(content))
        return new

    def _held(self, text: str) -> int:
        """Length of a text end that may begin a stop string."""
        longest = max((len(stop) for stop in self.sampling.stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self.sampling.stop):
                return size
        return 1 if text.endswith("\ufffd") else 0

    def parsed(self, end: End) -> Parsed:
        """The reply so far as content and tool calls."""
        if self.raw:
            return Parsed(self.text)
        parsed = self.rendering.renderer.parse(
            self.ids, self.text, self.prompt_ids, self.tools, prefix=self.prefix, end=end, hidden=self._hidden
        )
        return replace(parsed, calls=parsed.calls[:1]) if self.single else parsed

    def read(self) -> Parsed:
        """The reply as the agent gets it."""
        if self._read is None or self.finish is None:
            self._read = self.parsed("whole" if self.finish == "stop" else "cut")
        return self._read

    @property
    def problem(self) -> str | None:
        """See `Completion.problem`."""
        if self.raw or not self.tools:
            return None
        parsed = self.read()
        if self.prefix and not any(is_object(call.arguments) for call in parsed.calls):
            return parsed.problem or "the call that tool_choice demands has no JSON object as its arguments"
        return parsed.problem

    def message(self) -> dict[str, Any]:
        """The reply as a message in OpenAI's form. Ids of tool calls follow from the seed, so a repeated run repeats them."""
        parsed = self.read()
        message: dict[str, Any] = {"role": "assistant", "content": parsed.content or (None if parsed.calls else "")}
        if parsed.reasoning:
            message["reasoning_content"] = parsed.reasoning
        if parsed.calls:
            seed = f"{self.sampling.seed}/{len(self.prompt_ids)}"
            message["tool_calls"] = [
                {
                    "id": "call_" + hashlib.sha256(f"{seed}/{i}".encode()).hexdigest()[:24],
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for i, call in enumerate(parsed.calls)
            ]
        return message

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended it. The text does not contain it."""
        return self._hidden

    @property
    def logprobs(self) -> FloatArray | None:
        """(response,) None: the engine did not report all of them."""
        if any(scores is None for scores in self._scores):
            return None
        return np.concatenate([np.empty(0, np.float32), *cast("list[FloatArray]", self._scores)])

    @property
    def versions(self) -> IntArray:
        """(response,)"""
        versions, counts = zip(*self._versions, strict=True) if self._versions else ((), ())
        return ints(np.repeat(np.array(versions, np.int32), np.array(counts, np.int64)))

    def shown(self, start: int, end: int) -> range:
        """The indices of these tokens without the end mark."""
        return range(start, min(end, len(self.ids) - self._is_marked))

    @property
    def _is_marked(self) -> bool:
        """Whether the last token is an end mark."""
        return self.finish is not None and bool(self.ids) and self.ids[-1] in self.sampling.stop_ids
