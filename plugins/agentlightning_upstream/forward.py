"""One call answered by the upstream: read, plan the request, send it, pass the answer on.

The agent gets the upstream's answer without the fields requested only for the record.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, cast

import httpx
import msgspec

from agentlightning.gateway.api.answers import encode, event
from agentlightning.gateway.api.schema import ChatRequest, Refused, check_model, decode_body
from agentlightning.gateway.auth import Incoming, check_open
from agentlightning.gateway.call import Ending, Opening, Service, Step
from agentlightning.gateway.conversation import History, head_hash
from agentlightning.gateway.record import Draft
from agentlightning_upstream.completions import Forwarded
from agentlightning_upstream.connection import Connection
from agentlightning_upstream.request import Planned, planned
from agentlightning_upstream.wire import Fields, Reader, ResponseReader, event_name, events, json_object

PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/completions")
_fields = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class ForwardAnswerer:
    """Answers requests to one path. See `Answerer`."""

    service: Service
    connection: Connection
    path: str

    def error(self, refusal: Refused) -> bytes:
        """See `Answerer.error`."""
        return encode(refusal.body)

    async def answer(self, incoming: Incoming) -> AsyncGenerator[Step]:
        """See `Answerer.answer`."""
        rollout, model = incoming.state.rollout, self.service.engine.info.model
        body = decode_body(_fields, incoming.body)
        request = _canonical(body) if self.path == "/v1/chat/completions" else None
        history = None if request is None else _history(rollout.policy, request)
        draft = Draft(history, "upstream")
        yield draft
        check_open(incoming.state.attempt)
        self._check_model(body, rollout.policy)
        if request is not None:
            self.service.warn_overridden(incoming.state, request)
        plan = planned(self.path, body, rollout, incoming.index, model)
        try:
            response, level = await self.connection.send(self.path, plan, self.service.warn_once)
            forwarded = Forwarded(incoming, history, plan, level, self._reader(incoming, plan))
            yield replace(draft, completions=forwarded.completions)
            async with aclosing(response), aclosing(self._relay(response, forwarded.reader)) as steps:
                async for step in steps:
                    yield step
        except httpx.HTTPError as error:
            raise self.connection.unreachable(error) from error

    def _check_model(self, body: Fields, policy: str) -> None:
        """Raise `Refused` for a model that does not go to the upstream."""
        model, name = self.service.engine.info.model, body.get("model")
        if model:
            check_model(str(name), model, policy, self.service.models)
        elif name == policy:  # an adapter's request in a rollout that names no model
            raise Refused(
                f"The model {policy!r} is a policy name, and no model of {self.connection.url} is set for it. "
                "Name one with `agl serve --upstream URL --model NAME` or agl.rollout(task, model=NAME).",
                status=404, param="model", code="model_not_found",
            )  # fmt: skip

    def _reader(self, incoming: Incoming, plan: Planned) -> Reader | ResponseReader:
        if self.path == "/v1/responses":
            return ResponseReader()
        return Reader(
            incoming.seen.id,
            self.path,
            _replies(plan.body),
            shows_ids=bool(plan.body.get("return_token_ids")),
            shows_logprobs=plan.body.get("logprobs") not in (None, False),
        )

    async def _relay(self, response: httpx.Response, reader: Reader | ResponseReader) -> AsyncGenerator[Step]:
        """Pass the answer on. Its final events wait for the record."""
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            body = json_object(await response.aread())
            if body is None:
                raise self._broken("The answer of the upstream %s is not a JSON object.")
            yield Ending(encode(reader.take(body)))
            return
        ending: list[bytes] = []
        opened = False
        async with aclosing(cast(Any, events(response.aiter_bytes()))) as stream:
            async for raw, value in cast("AsyncIterator[tuple[bytes, Any]]", stream):
                data = self._event(raw, value, reader)
                if not opened:
                    opened = True
                    yield Opening(b"", _error_event)
                if ending or reader.done:
                    ending.append(data)
                else:
                    yield data
        if not reader.done:
            raise self._broken("The upstream %s ended its answer before the end of a reply.")
        yield Ending(b"".join(ending))

    def _event(self, raw: bytes, value: Any, reader: Reader | ResponseReader) -> bytes:
        """Return the agent's part of an event. Raises `Refused` if the upstream reports an error."""
        if not isinstance(value, dict):
            return raw
        fields = cast(Fields, value)
        if "choices" not in fields and isinstance(fields.get("error"), dict):
            raise self.connection.failure(fields)
        return event(reader.take(fields), event_name(raw))

    def _broken(self, text: str) -> Refused:
        return Refused(text % self.connection.url, status=502, type="server_error")


def _error_event(refusal: Refused) -> bytes:
    return event(refusal.body)


def _canonical(body: Fields) -> ChatRequest | None:
    """Convert the request to the gateway's format. Return None if the gateway cannot read it; the upstream then decides."""
    try:
        request = msgspec.convert(body, ChatRequest)
    except msgspec.ValidationError:
        return None
    return request if request.messages else None


def _history(policy: str, request: ChatRequest) -> History:
    return History.of(head_hash(policy, request.offered(), request.format), request.history())


def _replies(body: Fields) -> int:
    """Return the expected number of replies."""
    n, prompt = body.get("n"), body.get("prompt")
    prompts = cast("list[Any]", prompt) if isinstance(prompt, list) else []
    several = bool(prompts) and not isinstance(prompts[0], int)
    return (n if isinstance(n, int) else 1) * (len(prompts) if several else 1)
