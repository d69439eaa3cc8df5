"""What a wire form is: how a request is read into the canonical one, and how its answer is written. Nothing here knows an exchange.

A form is added by a file of its own that implements `Form`, and a line in `server.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agentlightning.gateway.api.schema import ChatRequest, Refused
from agentlightning.gateway.auth import AttemptState
from agentlightning.gateway.rendering.replies import Piece, Reply


@dataclass(frozen=True, slots=True)
class About:
    """What an answer says of its call."""

    call_id: str
    model: str
    created: float
    """Seconds since the epoch."""


class Answer(Protocol):
    """Writes the answer of one call: `body`, or `first`, then `piece` as often as there is one, then `last` or `error`.

    `replies` are the choices; `messages`, aligned with them, what `Reply.message` makes of each: role, content, perhaps
    `reasoning_content` and `tool_calls`, in the form of OpenAI's chat completions.
    """

    def body(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """The whole answer, as JSON."""
        ...

    def first(self, replies: Sequence[Reply]) -> bytes:
        """The events that open a stream; sent with the first piece, whose tokens the replies hold already."""
        ...

    def piece(self, index: int, reply: Reply, piece: Piece) -> bytes:
        """The events of one piece of one choice; nothing where the agent would see nothing."""
        ...

    def last(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """What is left (tool calls, reasons, usage), and the end of the stream in the way of this form."""
        ...

    def error(self, refusal: Refused) -> bytes:
        """The events that end a stream that had begun and cannot be completed."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, read."""

    request: ChatRequest
    """In the canonical form. Whether to stream, the limits and the number of choices stand here for every form."""
    answer: Callable[[About], Answer]
    """Makes the writer of its answer."""
    prompts: tuple[str | tuple[int, ...], ...] = ()
    """Texts or token ids to continue as they are, instead of the messages; `request.n` choices of each, in order."""
    keep_from: int | None = None
    """Messages from this index on are recorded with the call, so that a later request can refer to them; None: it cannot."""
    unmet: tuple[str, ...] = ()
    """Settings of the request, by name, that an open model has no means for. The call is answered without them, and that is said once."""


class Form(Protocol):
    """One wire form."""

    @property
    def path(self) -> str:
        """Where it is served, as in `/v1/chat/completions`."""
        ...

    def parse(self, body: bytes, state: AttemptState) -> Asked:
        """Read a request of this attempt. Raises `Refused`; what holds for every form is checked by `schema.check_request`."""
        ...

    def error(self, refusal: Refused) -> bytes:
        """The body of an answer that is an error, as JSON."""
        ...
