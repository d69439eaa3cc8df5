"""One call answered by the upstream: read, plan the request, send it, pass the answer on.

The agent gets the upstream's bytes. The gateway removes only the fields requested for the record, and its own key.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, cast

import httpx
import msgspec

from agentlightning.gateway.api.answers import encode, event
from agentlightning.gateway.api.body import read_fields
from agentlightning.gateway.api.openai_chat import ChatForm
from agentlightning.gateway.api.openai_completions import CompletionsForm
from agentlightning.gateway.api.openai_responses import ResponsesForm
from agentlightning.gateway.api.protocol import Form
from agentlightning.gateway.api.schema import ChatRequest, Refused, check_model
from agentlightning.gateway.api.sent import sent_elsewhere
from agentlightning.gateway.auth import Incoming, check_open
from agentlightning.gateway.call import Ending, Opening, Service, Step
from agentlightning.gateway.conversation import History, head_hash
from agentlightning.gateway.record import Draft
from agentlightning_upstream.completions import Forwarded
from agentlightning_upstream.connection import Connection
from agentlightning_upstream.replies import Fields
from agentlightning_upstream.request import Planned, overridable, planned
from agentlightning_upstream.sse import event_data, event_value, events, with_data
from agentlightning_upstream.wire import Reader, ResponseReader, failure, json_object

log = logging.getLogger("agentlightning.gateway")
FORMS: dict[str, Form[Any]] = {form.path: form for form in (ChatForm(), ResponsesForm(), CompletionsForm())}


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
        body = read_fields(incoming.body)
        request = _canonical(body) if self.path == "/v1/chat/completions" else None
        history = None if request is None else _history(rollout.policy, request)
        sent = sent_elsewhere(FORMS[self.path], body, incoming.state)
        draft = Draft(history, sent, tools=0 if request is None else len(request.offered()), context="upstream")
        yield draft
        check_open(incoming.state.attempt)
        self._check_model(body, rollout.policy)
        self.service.warn_overridden(incoming.state, overridable(body))
        plan = planned(self.path, body, rollout, incoming.index, model)
        try:
            response, level = await self.connection.send(self.path, plan, incoming.seen.id, self.service.warn_once)
            forwarded = Forwarded(incoming, history, plan, level, self._reader(plan, level))
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

    def _reader(self, plan: Planned, level: int) -> Reader | ResponseReader:
        """The reader of an answer. It hides the fields that the plan added."""
        if self.path == "/v1/responses":
            return ResponseReader()
        added, asked = plan.levels[level], plan.body
        hidden = ("token_ids", "prompt_token_ids") if "return_token_ids" in added and not asked.get("return_token_ids") else ()
        scores = ("logprobs",) if "logprobs" in added and asked.get("logprobs") in (None, False) else ()
        return Reader(self.path, _replies(asked), hidden=hidden + scores)

    async def _relay(self, response: httpx.Response, reader: Reader | ResponseReader) -> AsyncGenerator[Step]:
        """Pass the answer on, as it is. The bytes that end it wait for the record."""
        kind = response.headers.get("content-type", "application/json")
        if not kind.startswith("text/event-stream"):
            data = await response.aread()
            wrong = self._read(json_object(data), reader, is_body=True)
            if wrong is not None:
                data, wrong = self.connection.without_key(data), self.connection.without_key(wrong.encode()).decode()
            yield Ending(reader.shown(data), wrong, kind.encode("latin-1", "replace"))
            return
        ending, opened, wrong, raw = list[bytes](), False, None, b""
        async with aclosing(cast(Any, events(response.aiter_bytes()))) as stream:
            async for sent in cast("AsyncIterator[bytes]", stream):
                raw, value = sent, event_value(sent)
                if isinstance(value, dict):
                    wrong = wrong or self._read(cast(Fields, value), reader)
                    if wrong is not None:
                        raw, wrong = self.connection.without_key(raw), self.connection.without_key(wrong.encode()).decode()
                elif event_data(raw).strip() == b"[DONE]":
                    reader.close()
                if not opened:
                    opened = True
                    yield Opening(b"", _error_event)
                if ending or reader.done or wrong is not None:
                    ending.append(self._shown(raw, reader))
                else:
                    yield self._shown(raw, reader)
        if not opened:
            yield Opening(b"", _error_event)
        if wrong is None and not reader.done:
            if not raw.endswith(b"\n"):
                yield b"\n\n"  # the error is an event of its own
            text = f"The upstream {self.connection.url} ended its answer before the end of a reply."
            raise Refused(text, status=502, type="server_error")
        yield Ending(b"".join(ending), wrong)

    def _read(self, answer: Fields | None, reader: Reader | ResponseReader, *, is_body: bool = False) -> str | None:
        """Read a body or an event for the record. Returns what is wrong with it: the upstream's error, or an answer without a reply."""
        error = None
        if answer is not None:
            try:
                reader.take(answer)
            except Exception as unread:  # whatever an upstream sends, the agent gets it
                log.exception("The answer of the upstream %s cannot be recorded.", self.connection.url)
                return f"The answer of the upstream {self.connection.url} cannot be recorded: {type(unread).__name__}: {unread}"
            error = failure(answer)
        if error is not None:
            return f"The upstream failed in its answer: {error[:2000]}"
        if is_body:
            reader.close()
        return f"The answer of the upstream {self.connection.url} holds no reply." if is_body and not reader.choices else None

    def _shown(self, raw: bytes, reader: Reader | ResponseReader) -> bytes:
        """An event as the agent gets it."""
        data = event_data(raw)
        shown = reader.shown(data)
        return raw if shown is data else with_data(raw, shown)


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
