"""A wire form: it reads a body into the canonical request, and writes the answer. It knows nothing else of a call.

To add a form, implement `Form` in a file of its own and add a line to `server.py`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from agentlightning.gateway.api.answers import encode
from agentlightning.gateway.api.body import convert, read_fields
from agentlightning.gateway.api.checks import check_request
from agentlightning.gateway.api.parameters import Parameters
from agentlightning.gateway.api.schema import ChatRequest, Refused, Settings
from agentlightning.gateway.auth import AttemptState
from agentlightning.gateway.rendering.replies import Piece, Reply


@dataclass(frozen=True, slots=True)
class About:
    """The fields of an answer that name its call."""

    call_id: str
    model: str
    created: float
    """Seconds since the epoch."""


class Answer(Protocol):
    """Writes the answer of one call: `body`, or `first`, then `piece` for each piece, then `last` or `error`.

    `replies` are the choices. `messages`, aligned with them, come from `Reply.message`: role, content, perhaps `reasoning_content` and
    `tool_calls`, in the form of OpenAI's chat completions.
    """

    def body(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """The whole answer, as JSON."""
        ...

    def first(self, replies: Sequence[Reply]) -> bytes:
        """The events that open a stream. They leave with the first piece, and the replies have its tokens already."""
        ...

    def piece(self, index: int, reply: Reply, piece: Piece) -> bytes:
        """The events of one piece of one choice. Empty if the agent would see nothing."""
        ...

    def last(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """The rest (tool calls, finish reasons, usage) and the end of the stream."""
        ...

    def error(self, refusal: Refused) -> bytes:
        """The events that end a stream with an error."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, read."""

    request: ChatRequest
    """In the canonical form. It holds streaming, limits and the number of choices for every form."""
    answer: Callable[[About], Answer]
    """Makes the writer of its answer."""
    prompts: tuple[str | tuple[int, ...], ...] = ()
    """Texts or token ids to continue, instead of the messages: `request.n` choices of each, in order."""
    thread_start: int | None = None
    """See `Call.thread_start`."""
    ignored: Mapping[str, str] = field(default_factory=dict[str, str])
    """Fields that the answer ignores, with the reason for the one warning of each."""
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The raw body."""


R = TypeVar("R", bound=Settings)


class Form(ABC, Generic[R]):
    """Base of a wire form."""

    path: ClassVar[str]
    """The path, such as `/v1/chat/completions`."""
    body: type[R]
    """The type of its body."""
    parameters: ClassVar[Parameters]
    """What it does with each field of its body."""
    names: ClassVar[Mapping[str, str]] = {}
    """Names in this form of fields with another name in the canonical request (a pattern for their beginning). Errors use them."""

    @abstractmethod
    def read(self, request: R, fields: dict[str, Any], state: AttemptState) -> Asked:
        """Read a request of this attempt; `fields` is its raw body. Raises `Refused`."""

    def parse(self, body: bytes, state: AttemptState) -> Asked:
        """Read a body, and check it as that of every form is. Raises `Refused`."""
        fields = read_fields(body)
        self.parameters.check_refused(fields)
        asked = self.read(convert(fields, self.body), fields, state)
        ignored = self.parameters.unhonoured(fields, production=state.rollout.sampling is None)
        check_request(asked.request)
        return replace(asked, fields=fields, ignored={**asked.ignored, **ignored})

    def error(self, refusal: Refused) -> bytes:
        """The body of an answer that is an error, as JSON."""
        return encode(self.renamed(refusal).body)

    def renamed(self, refusal: Refused) -> Refused:
        """The same error with this form's names."""
        param, text = refusal.param or "", str(refusal)
        for pattern, name in self.names.items():
            here = re.sub(f"^{pattern}", name, param)
            if here != param:
                text = here + text.removeprefix(param) if text.startswith(param) else text
                return Refused(text, status=refusal.status, param=here, code=refusal.code, type=refusal.type)
        return refusal
