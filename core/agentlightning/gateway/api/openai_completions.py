"""`/v1/completions`: OpenAI's legacy form. It continues text or token ids as they are, so the agent controls every token of its prompts.

Each prompt begins a chain of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from agentlightning.gateway.api.answers import token_logprobs
from agentlightning.gateway.api.choices import ChoicesAnswer
from agentlightning.gateway.api.parameters import COMPLETIONS
from agentlightning.gateway.api.protocol import About, Asked, Form
from agentlightning.gateway.api.schema import ChatRequest, ChoiceSettings, Message, Refused
from agentlightning.gateway.auth import AttemptState
from agentlightning.gateway.rendering.replies import Piece, Reply


class CompletionsRequest(ChoiceSettings, kw_only=True):
    """The body of `/v1/completions`."""

    prompt: str | list[str | int | list[int]]
    best_of: int | None = None
    logprobs: int | None = None


LEGACY_LIMIT = 16
"""The default of `max_tokens` in this form."""


class CompletionsForm(Form[CompletionsRequest]):
    """See `Form`."""

    path = "/v1/completions"
    body = CompletionsRequest
    parameters = COMPLETIONS
    names: ClassVar[Mapping[str, str]] = {"messages$": "prompt"}

    def read(self, request: CompletionsRequest, fields: dict[str, Any], state: AttemptState) -> Asked:
        """See `Form.read`."""
        prompts = _prompts(request)
        _check(request)
        chat = ChatRequest.of(
            request,
            [Message("user", "")],  # in place of the prompts, so that the checks of all forms apply
            max_tokens=LEGACY_LIMIT if request.max_tokens is None else request.max_tokens,
            logprobs=request.logprobs is not None,
        )
        return Asked(chat, lambda about: CompletionsAnswer(about, chat, len(prompts)), prompts=prompts)


def _check(request: CompletionsRequest) -> None:
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise Refused("best_of is not supported. Ask for n replies and choose yourself.", param="best_of")


def _prompts(request: CompletionsRequest) -> tuple[str | tuple[int, ...], ...]:
    """One text, one list of ids, several texts, or several lists of ids."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return (prompt,)
    ids = [item for item in prompt if isinstance(item, int)]
    if prompt and len(ids) == len(prompt):
        return (tuple(ids),)
    several = [item if isinstance(item, str) else tuple(item) for item in prompt if not isinstance(item, int)]
    if not prompt or len(several) != len(prompt) or len({type(item) for item in several}) > 1:
        raise Refused("prompt mixes texts and token ids, or is empty. Send a text, token ids, or a list of either.", param="prompt")
    return tuple(several)


class CompletionsAnswer(ChoicesAnswer):
    """See `Answer`."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, about: About, request: ChatRequest, prompts: int) -> None:
        super().__init__(about, request, prompts)
        self._shown: dict[int, int] = {}  # characters of each choice that were streamed
        self._offsets: dict[int, int] = {}  # characters of each choice whose tokens were sent

    def _complete(self, index: int, reply: Reply, message: dict[str, Any]) -> dict[str, Any]:
        piece = Piece(0, len(reply.ids), str(message["content"] or ""))
        return {**self._piece(index, reply, piece), "finish_reason": _reason(reply)}

    def _piece(self, index: int, reply: Reply, piece: Piece) -> dict[str, Any]:
        is_first, self._shown[index] = index not in self._shown, self._shown.get(index, 0) + len(piece.text)
        choice = {**_choice(index, piece.text), "logprobs": self._logprobs(index, reply, piece.start, piece.end)}
        if self._with_ids:
            choice["token_ids"] = reply.ids[piece.start : piece.end]
            if is_first:
                choice["prompt_token_ids"] = reply.prompt_ids.tolist()
        return choice

    def _endings(self, index: int, reply: Reply, message: dict[str, Any]) -> list[dict[str, Any]]:
        return [_choice(index, str(message["content"] or "")[self._shown.get(index, 0) :], _reason(reply))]

    def _logprobs(self, index: int, reply: Reply, start: int, end: int) -> dict[str, Any] | None:
        """Of the tokens from `start` to `end`, as aligned lists."""
        content = token_logprobs(reply, start, end, every=self._with_ids) if self._with_logprobs else None
        if content is None:
            return None
        offsets: list[int] = []
        for token in content:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token["token"])
        return {
            "tokens": [token["token"] for token in content],
            "token_logprobs": [token["logprob"] for token in content],
            "top_logprobs": [{token["token"]: token["logprob"]} for token in content],
            "text_offset": offsets,
        }


def _choice(index: int, text: str, reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _reason(reply: Reply) -> str:
    return "length" if reply.finish == "length" else "stop"
