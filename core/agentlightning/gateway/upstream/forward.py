"""One call that is forwarded: whose it is, ask the upstream, record, reply.

The agent gets what the upstream answered, less what it did not ask for. What the upstream told of tokens is recorded, and what it did not
tell is missing: nothing is tokenised again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from contextlib import aclosing
from typing import Any, Literal, cast

import httpx
import msgspec
import numpy as np
from starlette.datastructures import Headers
from starlette.types import Send

from agentlightning.capture.recorder import CALL_HEADER
from agentlightning.contracts.store import LightningStore
from agentlightning.gateway.api.answers import encode, event, send_json
from agentlightning.gateway.api.schema import ChatRequest, Refused, check_model, decode_body
from agentlightning.gateway.auth import AttemptState, Callers, check_open
from agentlightning.gateway.call import Exchange, Gone, Service
from agentlightning.gateway.conversation import chain, head_hash, request_hash
from agentlightning.gateway.upstream.engine import Upstream
from agentlightning.gateway.upstream.request import Planned, planned
from agentlightning.gateway.upstream.wire import Choice, Fields, Reader, ResponseReader, event_name, events
from agentlightning.types import CallStatus, Completion, FloatArray, floats, ints

log = logging.getLogger("agentlightning.gateway")
PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/completions")
TIMEOUT = httpx.Timeout(600.0, connect=10.0)
"""Seconds: as OpenAI's own client waits for an answer."""
NOT_THE_REQUESTS = (401, 403, 408, 425, 429)
"""Statuses below 500 that say nothing of the agent's request: the gateway's own key is refused, or the upstream is busy."""
_fields = msgspec.json.Decoder(dict[str, Any])


class UpstreamRefused(Refused):
    """An error that the upstream answered with, in its own words."""

    def __init__(self, message: str, status: int, fields: Fields) -> None:
        super().__init__(message, status=status)
        self._fields = fields

    @property
    def call_status(self) -> Literal["refused", "error"]:
        return "error" if self.status in NOT_THE_REQUESTS else super().call_status

    @property
    def body(self) -> Fields:
        return self._fields


class ForwardService(Service):
    """What the endpoints of a forwarding gateway share. Belongs to one event loop."""

    def __init__(self, store: LightningStore, upstream: Upstream, callers: Callers, models: Collection[str] = ()) -> None:
        super().__init__(store, upstream, callers, models)
        self.upstream = upstream
        self.taken: dict[tuple[object, ...], int] = {}
        """The fullest level that the upstream took, by kind of request."""
        self._client: httpx.AsyncClient | None = None

    @property
    def client(self) -> httpx.AsyncClient:
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
            self._client = httpx.AsyncClient(headers=self.upstream.headers, timeout=TIMEOUT, limits=limits)
        return self._client

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()


class Forward(Exchange):
    """One request to one path, and its answer."""

    def __init__(self, service: ForwardService, path: str, state: AttemptState, headers: Headers, body: bytes, started: float) -> None:
        super().__init__(service, state, headers, body, started)
        self._service, self._upstream, self._path = service, service.upstream, path
        self._reader: Reader | ResponseReader | None = None
        self._plan: Planned | None = None
        self._level = 0  # of the plan: how much was added to the request that is answered
        self._sent = False

    def _error(self, refusal: Refused) -> bytes:
        return encode(refusal.body)

    async def _answer(self, send: Send, gone: asyncio.Future[None]) -> None:
        work = asyncio.ensure_future(self._forward(send, gone))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not self._sent:
                raise Gone
            await work
        except httpx.TimeoutException as error:
            raise _failed(f"{self._upstream.url} did not answer in time", error, 504, "upstream_timeout") from error
        except httpx.HTTPError as error:
            raise _failed(f"{self._upstream.url} cannot be reached, or broke off", error, 502, "upstream_unreachable") from error
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _forward(self, send: Send, gone: asyncio.Future[None]) -> None:
        plan = self._plan = self._planned()
        streams, path = bool(plan.body.get("stream")), self._path
        asked_ids, asked_scores = bool(plan.body.get("return_token_ids")), plan.body.get("logprobs") not in (None, False)
        chat_or_text = Reader(self._seen.id, path, _wanted(plan.body), shows_ids=asked_ids, shows_logprobs=asked_scores)
        self._reader = reader = ResponseReader() if path == "/v1/responses" else chat_or_text
        response = await self._ask(plan, streams)
        async with aclosing(response):
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                await self._relay(response, reader, send, gone)
                return
            body = _object(await response.aread())
            if body is None:
                raise Refused(f"the upstream {self._upstream.url} answered what is no JSON object", status=502, type="server_error")
            data = encode(reader.take(body))
            await self._deliver(gone)
            self._sent = True
            await send_json(send, 200, data, self._seen.id)

    def _planned(self) -> Planned:
        """From the request to what is sent: everything that can be refused here is."""
        rollout, upstream = self._state.rollout, self._upstream
        body = decode_body(_fields, self._body)
        request = _canonical(body) if self._path == "/v1/chat/completions" else None
        if request is not None:
            self._histories, tools = [request.history()], request.offered()
            self._head = head_hash(rollout.policy, tools, request.format)
            self._request_hash = self._seen.request_hash = request_hash(self._head, chain(self._histories[0]))
        self._context = "upstream"
        check_open(self._state.attempt)
        if not upstream.takes_any_model:
            check_model(str(body.get("model")), upstream.info.model, rollout.policy, self._service.models)
        elif body.get("model") == rollout.policy:  # as an adapter asks in a rollout that names no model
            raise Refused(
                f"the model {rollout.policy!r} is the name of a policy, and this gateway does not know which model of {upstream.url} it "
                "stands for: name it in `agl serve --upstream URL --model NAME`, or in agl.rollout(task, model=NAME)",
                status=404, param="model", code="model_not_found",
            )  # fmt: skip
        if request is not None:
            self._service.warn_overridden(self._state, request)
        return planned(self._path, body, rollout, self._index, upstream.info.model)

    async def _ask(self, plan: Planned, streams: bool) -> httpx.Response:
        """The answer, which has begun well; with as much added to the request as the upstream takes."""
        service, upstream = self._service, self._upstream
        kind = (self._path, plan.body.get("model"), streams, bool(plan.body.get("tools")), len(plan.levels))
        url = upstream.url + self._path.removeprefix("/v1")
        known = service.taken.get(kind)
        for self._level in range(known or 0, len(plan.levels)):
            added = plan.levels[self._level]
            request = service.client.build_request("POST", url, content=encode({**plan.body, **added}))
            response = await service.client.send(request, stream=True)
            if response.status_code == 200:
                service.taken.setdefault(kind, self._level)
                if self._level:
                    refused = set(plan.levels[0]) - set(added)
                    self._service.warn_once("levels", "the upstream %s takes no %s", upstream.url, ", ".join(sorted(refused)))
                return response
            async with aclosing(response):
                refusal = self._refusal(response, await response.aread())
            if known is not None or response.status_code not in (400, 422) or not added:
                raise refusal
        raise AssertionError("the last level adds nothing")  # and ended the loop

    def _refusal(self, response: httpx.Response, data: bytes) -> Refused:
        """What the upstream said, without its key; in OpenAI's form where it did not use it."""
        upstream, status = self._upstream, response.status_code
        text = upstream.without_key(data.decode(errors="replace"))
        fields = _object(text.encode())
        said: Any = (fields or {}).get("error")
        message = str(cast(Fields, said).get("message")) if isinstance(said, dict) else text[:500]
        message = f"the upstream {upstream.url} answered {status}: {message}"
        if status in (401, 403):
            message += f"; the key that it refuses is the gateway's, look at {upstream.key_hint}"
        if status < 400:
            status, fields = 502, None
        if isinstance(said, dict):
            error: Fields = {**cast(Fields, said), "message": message}
        else:
            error = {"message": message, "type": "invalid_request_error" if status < 500 else "server_error", "param": None, "code": None}
        refusal = UpstreamRefused(message, status, {**(fields or {}), "error": error})
        if "retry-after" in response.headers:
            refusal.headers.append((b"retry-after", response.headers["retry-after"].encode("latin-1", "replace")))
        return refusal

    async def _relay(self, response: httpx.Response, reader: Reader | ResponseReader, send: Send, gone: asyncio.Future[None]) -> None:
        """Pass events on as they come; those that end the answer wait until it is recorded."""
        held: list[bytes] = []
        call = (CALL_HEADER.lower().encode(), self._seen.id.encode("latin-1", "replace"))
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"), call]
        async with aclosing(cast(Any, events(response.aiter_bytes()))) as stream:
            async for raw, value in cast("AsyncIterator[tuple[bytes, Any]]", stream):
                if not isinstance(value, dict):
                    data = raw
                elif "choices" not in value and isinstance(value.get("error"), dict):  # pyright: ignore[reportUnknownMemberType]
                    error = cast("dict[str, Fields]", _object(self._upstream.without_key(encode(value).decode()).encode()))["error"]
                    raise UpstreamRefused(f"the upstream failed in its answer: {error.get('message')}", 502, {"error": error})
                else:
                    data = event(reader.take(cast(Fields, value)), event_name(raw))
                if self._stream_error is None:
                    self._stream_error = _error_event
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                if held or reader.done:
                    held.append(data)
                else:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        if not reader.done:
            raise Refused(f"the upstream {self._upstream.url} ended its answer before a reply had ended", status=502, type="server_error")
        await self._deliver(gone)
        self._sent = True
        await send({"type": "http.response.body", "body": b"".join(held), "more_body": False})

    def _completions(self, status: CallStatus) -> list[Completion]:
        if self._reader is None or self._plan is None or status == "refused":
            return []
        return [self._completion(place, choice, status, self._plan) for place, choice in sorted(self._reader.choices.items())]

    def _completion(self, place: int, choice: Choice, status: CallStatus, plan: Planned) -> Completion:
        missing = self._missing_ids(choice)
        prompt, ids = ([], []) if missing is not None else (choice.prompt_ids or [], choice.ids or [])
        scores, unscored = (None, missing) if missing is not None else self._scores(choice, plan)
        message = choice.message()
        ended = choice.finish if status == "completed" else None
        finish = ended or ("cancelled" if status == "cancelled" else "error")
        return Completion(
            call_id=self._seen.id,
            attempt_id=self._state.attempt.id,
            choice=place,
            policy=self._state.rollout.policy,
            prompt_ids=ints(prompt),
            response_ids=ints(ids),
            logprobs=scores,
            versions=ints(np.full(len(ids), -1)),
            sampling=plan.sampling,
            finish_reason=finish,
            continues=self._continued(prompt),
            conversation=f"{self._head}.{chain([*self._histories[0], message])[-1]}" if self._histories else f"upstream.{self._seen.id}",
            message=message,
            missing=unscored,
        )

    def _missing_ids(self, choice: Choice) -> str | None:
        """Why the token ids of a reply are not known; None: they are."""
        if choice.ids is None or choice.prompt_ids is None or choice.broken:
            return "token ids missing: the upstream returned none"
        counted = self._reader.counted if self._reader is not None and len(self._reader.choices) == 1 else None
        if counted is not None and choice.finish is not None and counted != len(choice.ids):
            return f"token ids missing: the upstream counted {counted} tokens and returned {len(choice.ids)} ids"
        return None

    def _scores(self, choice: Choice, plan: Planned) -> tuple[FloatArray | None, str | None]:
        """Log-probabilities, or why there are none."""
        if plan.inexact is not None:
            return None, f"no logprobs: {plan.inexact}"
        if self._level:
            return None, "no logprobs: the upstream does not take all settings of the sampling, so its own defaults may have held"
        given, ids = choice.scores or [], choice.ids or []
        if len(given) != len(ids):
            return None, f"no logprobs: the upstream gave {len(given)} for {len(ids)} tokens"
        return floats(np.array(given, np.float32)), None

    def _continued(self, prompt: list[int]) -> str | None:
        """The reply that the messages continue, where the prompt does start with its tokens."""
        if not prompt or not self._histories:
            return None
        [messages] = self._histories
        earlier, _, _ = self._state.conversations.find(self._head, messages, chain(messages))
        before = [] if earlier is None else [*earlier.prompt_ids.tolist(), *earlier.response_ids.tolist()]
        return earlier.id if earlier is not None and prompt[: len(before)] == before else None


def _error_event(refusal: Refused) -> bytes:
    return event(refusal.body)


def _failed(what: str, error: Exception, status: int, code: str) -> Refused:
    text = f"the upstream {what}: {type(error).__name__}" + (f": {error}" if str(error) else "")
    return Refused(text, status=status, type="server_error", code=code)


def _object(data: bytes) -> Fields | None:
    try:
        return _fields.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _canonical(body: Fields) -> ChatRequest | None:
    """The request as the gateway reads its own; None: it cannot, which is for the upstream to judge."""
    try:
        request = msgspec.convert(body, ChatRequest)
    except msgspec.ValidationError:
        return None
    return request if request.messages else None


def _wanted(body: Fields) -> int:
    """Replies that an answer must have."""
    n, prompt = body.get("n"), body.get("prompt")
    prompts = cast("list[Any]", prompt) if isinstance(prompt, list) else []
    several = bool(prompts) and not isinstance(prompts[0], int)
    return (n if isinstance(n, int) else 1) * (len(prompts) if several else 1)
