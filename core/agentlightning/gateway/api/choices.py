"""The answers of chat completions and completions, which have choices, whole or in chunks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from agentlightning.gateway.api.answers import DONE, encode, event, sampled
from agentlightning.gateway.api.protocol import About, Answer
from agentlightning.gateway.api.schema import ChatRequest, Refused
from agentlightning.gateway.rendering.replies import Piece, Reply


class ChoicesAnswer(Answer):
    """See `Answer`. Choices stand in the order of the prompts, `n` of each."""

    prefix: ClassVar[str]
    """Of the id of an answer."""
    kind: ClassVar[str]
    """`object` of a whole answer."""
    chunk_kind: ClassVar[str]

    def __init__(self, about: About, request: ChatRequest, prompts: int = 1) -> None:
        self._about, self._prompts = about, prompts
        self._with_logprobs, self._with_ids = bool(request.logprobs), bool(request.return_token_ids)
        self._with_usage = request.stream_options is not None and bool(request.stream_options.include_usage)

    @abstractmethod
    def _complete(self, index: int, reply: Reply, message: dict[str, Any]) -> dict[str, Any]:
        """The whole choice."""

    @abstractmethod
    def _piece(self, index: int, reply: Reply, piece: Piece) -> dict[str, Any]:
        """The choice of a chunk with one piece."""

    @abstractmethod
    def _endings(self, index: int, reply: Reply, message: dict[str, Any]) -> list[dict[str, Any]]:
        """The choices of the last chunks."""

    def _prompt(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """The fields of an answer that describe its prompt."""
        return {}

    def body(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """See `Answer.body`."""
        choices = [self._complete(i, reply, message) for i, (reply, message) in enumerate(zip(replies, messages, strict=True))]
        return encode({**self._base(self.kind), "choices": choices, "usage": self._usage(replies), **self._prompt(replies)})

    def first(self, replies: Sequence[Reply]) -> bytes:
        """See `Answer.first`."""
        return b""

    def piece(self, index: int, reply: Reply, piece: Piece) -> bytes:
        """See `Answer.piece`."""
        if not piece.text and not self._with_ids and not self._with_logprobs:
            return b""
        return self._chunk([self._piece(index, reply, piece)])

    def last(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """See `Answer.last`."""
        choices = [self._endings(i, reply, message) for i, (reply, message) in enumerate(zip(replies, messages, strict=True))]
        events = b"".join(self._chunk([choice]) for endings in choices for choice in endings)
        return events + (self._chunk([], usage=self._usage(replies)) if self._with_usage else b"") + DONE

    def error(self, refusal: Refused) -> bytes:
        """See `Answer.error`."""
        return event(refusal.body)

    def _base(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{self._about.call_id}",
            "object": kind,
            "created": int(self._about.created),
            "model": self._about.model,
            "system_fingerprint": self._about.call_id,
        }

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        if self._with_usage:
            more.setdefault("usage", None)
        return event({**self._base(self.chunk_kind), "choices": choices, **more})

    def _usage(self, replies: Sequence[Reply]) -> dict[str, int]:
        choices = len(replies) // self._prompts  # a prompt counts once, however many choices it has
        prompt, completion = sum(len(reply.prompt_ids) for reply in replies[::choices]), sampled(replies)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
