"""Messages to token ids and back, for one model: the base of renderers, and what the gateway keeps of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.rendering.tokens import Tokens
from agentlightning.gateway.rendering.tool_text import End, ToolCall
from agentlightning.types import Completion, IntArray, ints


@dataclass(frozen=True, slots=True)
class Parsed:
    """The content of a reply."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    problem: str | None = None
    """Why a part that looks like a tool call is text."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a prompt is rendered from."""

    messages: Sequence[Mapping[str, Any]]
    """In OpenAI's form. The reasoning of earlier replies is in `reasoning_content`."""
    tools: Sequence[Any] = ()
    """As the agent sent them."""
    when: datetime | None = None
    """The date that the template may print."""
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Of the template, from this request."""
    unfinished: bool = False
    """True: the last message is the beginning of the reply."""
    asks: bool = True
    """False: the prompt ends with the last message, and nothing asks for a reply."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """The ids that follow a sampled reply, or the reason why the prompt is rendered afresh."""

    ids: tuple[int, ...] | None
    """(new tokens,) after the sampled ones."""
    cause: str = "bridged"


class Renderer(ABC):
    """Base of renderers: one model's prompts, and the reading of its replies. Made with `(tokens, settings)`."""

    name: str
    stop_ids: tuple[int, ...]
    """Ids that end a reply. The first one ends a demonstration."""
    stop_strings: tuple[str, ...] = ()
    """Ends of several tokens."""
    streams_calls: bool = True
    """Whether `parse` reads the beginning of a reply with tools. Otherwise its text arrives at the end."""
    notes: tuple[str, ...] = ()
    """What the user should know about this model and template, a sentence or two each."""

    @abstractmethod
    def prompt(self, conversation: Conversation) -> list[int]:
        """(prompt,) the conversation, ready for a reply. Raises `Refused`."""

    @abstractmethod
    def bridge(self, earlier: Completion, conversation: Conversation, end: int) -> Bridge:
        """The ids after the prompt and response of `earlier`, whose reply is the message before `end`. Raises `Refused`."""

    def prefill(self, tool: str | None, conversation: Conversation) -> str:
        """The text that makes a reply a call of this tool; None: of any tool. Raises `Refused`."""
        raise Refused(f"The renderer {self.name!r} cannot enforce tool_choice. Use 'auto'.", param="tool_choice")

    @abstractmethod
    def parse(
        self, ids: Sequence[int], text: str, prompt: IntArray, tools: Sequence[Any], *, prefix: str = "", end: End, hidden: str | None
    ) -> Parsed:
        """Read a reply. `text` is the visible part of `ids`, `hidden` the stop string that ended it, `prefix` the end of the prompt."""

    @abstractmethod
    def written(self, conversation: Conversation, message: Mapping[str, Any]) -> str | None:
        """The text of this message as a reply to the conversation, without its end mark. None: it cannot be one."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """One tokenizer and its renderer."""

    tokens: Tokens
    renderer: Renderer
    hash: str
    """Of the tokenizer."""

    @property
    def name(self) -> str:
        return self.renderer.name

    @property
    def tokenizer(self) -> Any:
        return self.tokens.tokenizer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.renderer.stop_ids

    def bridge(self, earlier: Completion, conversation: Conversation, end: int) -> tuple[IntArray | None, str]:
        """((prompt,), `Call.context`): the sampled tokens, then the new messages. None: the reason is in the context."""
        if (earlier.renderer, earlier.tokenizer) != (self.name, self.hash):
            return None, "renderer changed"
        bridge = self.renderer.bridge(earlier, conversation, end)
        if bridge.ids is None:
            return None, bridge.cause
        return ints(np.concatenate([earlier.prompt_ids, earlier.response_ids, ints(bridge.ids)])), bridge.cause

    def encode(self, text: str) -> list[int]:
        return self.tokens.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokens.decode(ids)
