"""Serves any store over HTTP to clients with the token. `http_client.METHODS` is the table of calls.

A server that is full (`http_load`) answers 503 with Retry-After, before it reads the request.

Keep the token secret: the answers contain attempt keys and all records.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections import OrderedDict
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from agentlightning.contracts.store import LightningStore
from agentlightning.errors import ConfigError, LeaseLost, LightningError, NotFound, StoreError, StoreUnavailable, WireError
from agentlightning.stores.http_batch import BATCH_PATH, BATCHED, Answer, SentCall
from agentlightning.stores.http_client import CONTENT_TYPE, ERRORS, LONG_POLL, METHODS, PREFIX, REQUEST_HEADER
from agentlightning.stores.http_load import MAX_BODY, RETRY_AFTER, STALL, Load, expected_size, read_body
from agentlightning.stores.serialization import decode, encode

ANSWERS = 4096
"""Maximum answers kept for repeated requests."""
STOPPING = "agentlightning.stopping"
"""In the scope of a request: an `asyncio.Event` that is set when the server begins to stop."""
SIGNS = frozenset({"claim", "heartbeat"})
"""The calls of a living runner."""

logger = logging.getLogger(__name__)


class StoreServer:
    """Answers the calls of `StoreClient`."""

    def __init__(self, store: LightningStore, token: str) -> None:
        if not token:
            raise ConfigError("The token of the store is empty. Create one with secrets.token_urlsafe().")
        self.store = store
        self._secret = _hash(f"Bearer {token}")
        self._answers: OrderedDict[tuple[str, str], asyncio.Task[Answer]] = OrderedDict()
        self.load = Load()
        self.last_sign: float | None = None
        """When a runner last asked for work or renewed a lease (`time.monotonic`)."""

    @property
    def routes(self) -> list[Route]:
        """For an app that serves the store."""
        return [Route(f"{PREFIX}/{{method}}", self.answer, methods=["POST"])]

    def admits(self, request: Request) -> bool:
        """Whether a request has the token."""
        return secrets.compare_digest(_hash(request.headers.get("Authorization", "")), self._secret)

    async def answer(self, request: Request) -> Response:
        if not self.admits(request):
            return _response(_failure(401, StoreError("The token is missing or wrong. Send it as `Authorization: Bearer TOKEN`.")))
        name, size = request.path_params["method"], expected_size(request)
        if name == "wait":
            return _response(await self._wait(request))
        if not self.load.admits(size):
            busy = _failure(503, StoreError(f"The store works on {self.load.requests} requests and takes no more. Send it again."))
            return _response(busy, {"Retry-After": str(RETRY_AFTER)})
        with self.load.of(size):
            return _response(await self._read_and_do(name, request))

    async def _wait(self, request: Request) -> Answer:
        """Do a `wait`, which ends early when the server stops."""
        stopping: asyncio.Event | None = request.scope.get(STOPPING)
        if stopping is None:
            return await self._read_and_do("wait", request)
        tasks = asyncio.create_task(self._read_and_do("wait", request)), asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            done = tasks[0].done()
            return tasks[0].result() if done else _failure(503, StoreError("The store's server is stopping. Send it again."))
        finally:
            for task in tasks:
                task.cancel()

    async def _read_and_do(self, name: str, request: Request) -> Answer:
        try:
            body = await read_body(request)
        except ClientDisconnect:  # killed; nobody reads the answer
            return Answer(400, b"")
        except TimeoutError:
            return _failure(408, StoreError(f"No byte of the request arrived for {STALL:.0f} seconds. Send it again."))
        if body is None:
            return _failure(413, StoreError(f"The call `{name}` has more than {MAX_BODY >> 20} MB. Split it into several."))
        if name == BATCH_PATH:
            return await self._do_together(body)
        return await self._do_once(SentCall(name, request.headers.get(REQUEST_HEADER), body))

    async def _do_together(self, body: bytes) -> Answer:
        """Do the calls of a batch. Their records go to the store together, in order."""
        try:
            calls: list[SentCall] = decode(body, list[SentCall])
        except WireError as error:
            return _failure(400, error)
        if strangers := {call.name for call in calls} - BATCHED:
            return _failure(404, WireError(f"A batch has no call {min(strangers)!r}. Use one of {', '.join(sorted(BATCHED))}."))
        records = asyncio.create_task(self._record([call.body for call in calls if call.name == "record"]))
        others = iter(await asyncio.gather(*(self._do_once(call) for call in calls if call.name != "record")))
        recorded = iter(await records)
        return Answer(200, encode([next(recorded if call.name == "record" else others) for call in calls]))

    async def _record(self, bodies: list[bytes]) -> list[Answer]:
        """Do the `record` calls of a batch as one. If that fails, each succeeds or fails alone."""
        if len(bodies) > 1:
            try:
                await self.store.record([record for body in bodies for record in decode(body, METHODS["record"].arguments)[0]])
                return [Answer(200, encode(None))] * len(bodies)
            except Exception as error:  # the calls below answer with it, or without the one that caused it
                logger.debug("Calls fail together: %s", error)
        return list(await asyncio.gather(*(self._answer("record", body) for body in bodies)))

    async def _do_once(self, call: SentCall) -> Answer:
        if call.name not in METHODS:
            return _failure(404, WireError(f"This store has no call {call.name!r}. Use one of {', '.join(METHODS)}."))
        if call.name in SIGNS:
            self.last_sign = time.monotonic()
        if not METHODS[call.name].once or call.request is None:
            return await self._answer(call.name, call.body)
        # its own task continues after a disconnect, so a repetition gets its answer
        task = self._answers.get((call.name, call.request))
        if task is None:
            task = self._answers[call.name, call.request] = asyncio.create_task(self._answer(call.name, call.body))
            while len(self._answers) > ANSWERS:
                self._answers.popitem(last=False)
        answer = await asyncio.shield(task)
        if answer.status == 503:
            self._answers.pop((call.name, call.request), None)  # a repetition tries again
        return answer

    async def _answer(self, name: str, body: bytes) -> Answer:
        try:
            return Answer(200, encode(await self._do(name, decode(body, METHODS[name].arguments))))
        except LightningError as error:
            kinds = {NotFound: 404, LeaseLost: 409, StoreUnavailable: 503}
            return _failure(next((status for kind, status in kinds.items() if isinstance(error, kind)), 400), error)
        except Exception as error:  # the boundary: the client gets a named error, the log the traceback
            logger.exception("The store failed in the call %r.", name)
            return _failure(500, error)

    async def _do(self, name: str, arguments: tuple[Any, ...]) -> Any:
        keywords = METHODS[name].keywords
        positional = len(arguments) - len(keywords)
        named = dict(zip(keywords, arguments[positional:], strict=True))
        if name == "wait":
            named["timeout"] = LONG_POLL if named["timeout"] is None else min(named["timeout"], LONG_POLL)
        return await getattr(self.store, name)(*arguments[:positional], **named)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _failure(status: int, error: Exception) -> Answer:
    kind = next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in ERRORS), "StoreError")
    message = str(error) if isinstance(error, LightningError) else f"The server failed: {type(error).__name__}: {error}. Read its log."
    return Answer(status, encode((kind, message.encode("utf-8", "backslashreplace").decode())))


def _response(answer: Answer, headers: dict[str, str] | None = None) -> Response:
    return Response(answer.body, answer.status, headers, media_type=CONTENT_TYPE)
