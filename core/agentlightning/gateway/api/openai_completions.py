"""`/v1/completions`: OpenAI's legacy form. It continues text or token ids as they are, so the agent controls every token of its prompts.

Each prompt begins a chain of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agentlightning.gateway.api.answers import DONE, encode, event, sampled, token_logprobs
from agentlightning.gateway.api.protocol import About, Asked
from agentlightning.gateway.api.schema import ChatRequest, Message, Refused, StreamOptions, check_request, decode_body
from agentlightning.gateway.auth import AttemptState
from agentlightning.gateway.rendering.replies import Piece, Reply


class CompletionsRequest(msgspec.Struct):
    """The body of `/v1/completions`."""

    model: str
    prompt: str | list[str | int | list[int]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    return_token_ids: bool | None = None


_decoder = msgspec.json.Decoder(CompletionsRequest)
LEGACY_LIMIT = 16
"""The default of `max_tokens` in this form."""


class CompletionsForm:
    """See `Form`."""

    path = "/v1/completions"

    def parse(self, body: bytes, state: AttemptState) -> Asked:
        """See `Form.parse`."""
        request = decode_body(_decoder, body)
        prompts = _prompts(request)
        _check(request)
        chat = ChatRequest(
            model=request.model,
            messages=[Message("user", "")],  # in place of the prompts, so that the checks of all forms apply
            stream=request.stream,
            stream_options=request.stream_options,
            n=request.n,
            stop=request.stop,
            max_tokens=LEGACY_LIMIT if request.max_tokens is None else request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            logit_bias=request.logit_bias,
            logprobs=request.logprobs is not None,
            return_token_ids=request.return_token_ids,
        )
        check_request(chat)
        return Asked(chat, lambda about: CompletionsAnswer(about, chat, len(prompts)), prompts=prompts)

    def error(self, refusal: Refused) -> bytes:
        """See `Form.error`."""
        body = refusal.body
        if refusal.param == "messages":
            body["error"]["param"] = "prompt"
        return encode(body)


def _check(request: CompletionsRequest) -> None:
    if request.echo:
        raise Refused(
            "echo is not supported, because the engine reports nothing about prompt tokens. Put the prompt in front yourself.", param="echo"
        )
    if request.suffix:
        raise Refused("suffix is not supported, because the engine only continues a prompt. Leave it out.", param="suffix")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise Refused("best_of is not supported. Ask for n replies and choose yourself.", param="best_of")
    if request.logprobs is not None and request.logprobs > 1:
        raise Refused(
            f"logprobs is {request.logprobs}, but the engine reports only the sampled token's. Use logprobs=1 (or 0).", param="logprobs"
        )


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


class CompletionsAnswer:
    """See `Answer`. Choices stand in the order of the prompts, `n` of each."""

    def __init__(self, about: About, request: ChatRequest, prompts: int) -> None:
        self._about, self._prompts = about, prompts
        self._with_logprobs, self._with_ids = bool(request.logprobs), bool(request.return_token_ids)
        self._with_usage = request.stream_options is not None and bool(request.stream_options.include_usage)
        self._shown: dict[int, int] = {}  # characters of each choice that were streamed
        self._offsets: dict[int, int] = {}  # characters of each choice whose tokens were sent

    def body(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """See `Answer.body`."""
        choices = [
            self._choice(index, reply, Piece(0, len(reply.ids), str(message["content"] or "")), _reason(reply), first=True)
            for index, (reply, message) in enumerate(zip(replies, messages, strict=True))
        ]
        return encode({**self._base(), "choices": choices, "usage": self._usage(replies)})

    def first(self, replies: Sequence[Reply]) -> bytes:
        """See `Answer.first`. This form has no opening."""
        return b""

    def piece(self, index: int, reply: Reply, piece: Piece) -> bytes:
        """See `Answer.piece`."""
        if not piece.text and not self._with_ids and not self._with_logprobs:
            return b""
        first, self._shown[index] = index not in self._shown, self._shown.get(index, 0) + len(piece.text)
        return self._chunk([self._choice(index, reply, piece, None, first=first)])

    def last(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """See `Answer.last`."""
        events: list[bytes] = []
        for index, (reply, message) in enumerate(zip(replies, messages, strict=True)):
            rest = str(message["content"] or "")[self._shown.get(index, 0) :]
            events.append(self._chunk([{"index": index, "text": rest, "logprobs": None, "finish_reason": _reason(reply)}]))
        if self._with_usage:
            events.append(self._chunk([], usage=self._usage(replies)))
        return b"".join(events) + DONE

    def error(self, refusal: Refused) -> bytes:
        """See `Answer.error`."""
        return event(refusal.body)

    def _base(self) -> dict[str, Any]:
        return {
            "id": f"cmpl-{self._about.call_id}",
            "object": "text_completion",
            "created": int(self._about.created),
            "model": self._about.model,
            "system_fingerprint": self._about.call_id,
        }

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        if self._with_usage:
            more.setdefault("usage", None)
        return event({**self._base(), "choices": choices, **more})

    def _choice(self, index: int, reply: Reply, piece: Piece, reason: str | None, *, first: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "text": piece.text,
            "logprobs": self._logprobs(index, reply, piece.start, piece.end),
            "finish_reason": reason,
        }
        if self._with_ids:
            choice["token_ids"] = reply.ids[piece.start : piece.end]
            if first:
                choice["prompt_token_ids"] = reply.prompt_ids.tolist()
        return choice

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

    def _usage(self, replies: Sequence[Reply]) -> dict[str, int]:
        choices = len(replies) // self._prompts  # a prompt counts once, however many choices it has
        prompt, completion = sum(len(reply.prompt_ids) for reply in replies[::choices]), sampled(replies)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _reason(reply: Reply) -> str:
    return "length" if reply.finish == "length" else "stop"
