"""Serves any store over HTTP to clients with the token. `http_client.METHODS` is the table of calls.

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

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from agentlightning.contracts.store import LightningStore
from agentlightning.errors import ConfigError, LeaseLost, LightningError, NotFound, StoreError, StoreUnavailable, WireError
from agentlightning.stores.health import health_routes
from agentlightning.stores.http_client import ERRORS, LONG_POLL, METHODS, PREFIX, REQUEST_HEADER
from agentlightning.stores.serialization import decode, encode

ANSWERS = 4096
"""Maximum answers kept for repeated requests."""
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
        self._answers: OrderedDict[tuple[str, str], asyncio.Task[Response]] = OrderedDict()
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
            return _failure(401, StoreError("The token is missing or wrong. Send it as `Authorization: Bearer TOKEN`."))
        name = request.path_params["method"]
        if name not in METHODS:
            return _failure(404, WireError(f"This store has no call {name!r}. Use one of {', '.join(METHODS)}."))
        if name in SIGNS:
            self.last_sign = time.monotonic()
        try:
            body = await request.body()
        except ClientDisconnect:  # killed; nobody reads the answer
            return Response(status_code=400)
        request_id = request.headers.get(REQUEST_HEADER)
        if not METHODS[name].once or request_id is None:
            return await self._answer(name, body)
        # its own task continues after a disconnect, so a repetition gets its answer
        task = self._answers.get((name, request_id))
        if task is None:
            task = self._answers[name, request_id] = asyncio.create_task(self._answer(name, body))
            while len(self._answers) > ANSWERS:
                self._answers.popitem(last=False)
        answer = await asyncio.shield(task)
        if answer.status_code == 503:
            self._answers.pop((name, request_id), None)  # a repetition tries again
        return answer

    async def _answer(self, name: str, body: bytes) -> Response:
        try:
            result = await self._do(name, decode(body, METHODS[name].arguments))
            return Response(encode(result), media_type="application/octet-stream")
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


def _failure(status: int, error: Exception) -> Response:
    kind = next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in ERRORS), "StoreError")
    message = str(error) if isinstance(error, LightningError) else f"The server failed: {type(error).__name__}: {error}. Read its log."
    body = encode((kind, message.encode("utf-8", "backslashreplace").decode()))
    return Response(body, status_code=status, media_type="application/octet-stream")


def store_app(store: LightningStore, token: str) -> Starlette:
    """An ASGI app that serves `store` under `/store/v1/` to clients with `token`, with `/health` and `/ready`."""
    return Starlette(routes=[*StoreServer(store, token).routes, *health_routes(store)])
