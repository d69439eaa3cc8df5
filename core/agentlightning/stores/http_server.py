"""Any store over HTTP, for one who holds the token. `client.METHODS` is the table of calls.

Attempt keys are part of the answers; so is everything that was recorded: the token is worth the whole store.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections import OrderedDict
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentlightning.contracts.store import LightningStore
from agentlightning.errors import ConfigError, LeaseLost, LightningError, NotFound, StoreError, WireError
from agentlightning.stores.http_client import ERRORS, LONG_POLL, METHODS, PREFIX, REQUEST_HEADER
from agentlightning.stores.serialization import decode, encode

ANSWERS = 4096
"""Answers kept for repeated requests, at most."""

logger = logging.getLogger(__name__)


class StoreServer:
    """Answers the calls of `StoreClient`."""

    def __init__(self, store: LightningStore, token: str) -> None:
        if not token:
            raise ConfigError("a store is served with a token that is not empty; make one with secrets.token_urlsafe()")
        self.store = store
        self._secret = _hash(f"Bearer {token}")
        self._answers: OrderedDict[tuple[str, str], asyncio.Task[Response]] = OrderedDict()

    async def answer(self, request: Request) -> Response:
        if not secrets.compare_digest(_hash(request.headers.get("Authorization", "")), self._secret):
            return _failure(401, StoreError("the token is missing or wrong"))
        name = request.path_params["method"]
        if name not in METHODS:
            return _failure(404, WireError(f"this store does not know the call {name!r}; known: {', '.join(METHODS)}"))
        body = await request.body()
        request_id = request.headers.get(REQUEST_HEADER)
        if not METHODS[name].once or request_id is None:
            return await self._answer(name, body)
        # a task of its own: it goes on when the client goes away, and a repetition finds its answer
        task = self._answers.get((name, request_id))
        if task is None:
            task = self._answers[name, request_id] = asyncio.create_task(self._answer(name, body))
            while len(self._answers) > ANSWERS:
                self._answers.popitem(last=False)
        return await asyncio.shield(task)

    async def _answer(self, name: str, body: bytes) -> Response:
        try:
            result = await self._do(name, decode(body, METHODS[name].arguments))
            return Response(encode(result), media_type="application/octet-stream")
        except LightningError as error:
            return _failure(404 if isinstance(error, NotFound) else 409 if isinstance(error, LeaseLost) else 400, error)
        except Exception as error:  # the boundary: the client gets a named error, the log all of it
            logger.exception("the call %r failed", name)
            return _failure(500, error)

    async def _do(self, name: str, arguments: tuple[Any, ...]) -> Any:
        store = self.store
        match name, arguments:
            case "claim", (worker, lease, limit, modes):
                return await store.claim(worker, lease=lease, limit=limit, modes=modes)
            case "begin", (rollout, worker, lease):
                return await store.begin(rollout, worker, lease=lease)
            case "heartbeat", (attempt_id, lease):
                return await store.heartbeat(attempt_id, lease=lease)
            case "finish", (attempt_id, status, error, retry):
                return await store.finish(attempt_id, status, error=error, retry=retry)
            case "attempt", (attempt_id, key):
                return await store.attempt(id=attempt_id, key=key)
            case "list", (after, limit, status, mode, step, group, order):
                return await store.list(after=after, limit=limit, status=status, mode=mode, step=step, group=group, order=order)
            case "wait", (after, timeout):
                return await store.wait(after, timeout=LONG_POLL if timeout is None else min(timeout, LONG_POLL))
            case _:  # add, record, cancel, read, records, publish, policies
                return await getattr(store, name)(*arguments)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _failure(status: int, error: Exception) -> Response:
    kind = next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in ERRORS), "StoreError")
    message = str(error) if isinstance(error, LightningError) else f"the server failed: {type(error).__name__}: {error}"
    body = encode((kind, message.encode("utf-8", "backslashreplace").decode()))
    return Response(body, status_code=status, media_type="application/octet-stream")


def store_app(store: LightningStore, token: str) -> Starlette:
    """An ASGI app that serves `store` under `/store/v1/` to whoever has `token`. Mount it at the root of a larger app, after its own
    routes."""
    return Starlette(routes=[Route(f"{PREFIX}/{{method}}", StoreServer(store, token).answer, methods=["POST"])])
