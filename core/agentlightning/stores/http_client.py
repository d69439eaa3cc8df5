"""A store behind HTTP, and the table of calls that client and server share.

A call is a POST to `/store/v1/<method>` with `Authorization: Bearer <token>`. Arguments, results and errors are bytes of `serialization`.
The client repeats a call after a lost answer. If a repetition would change something (`once`), the call carries an id, and the server
repeats its first answer to that id. A claim has its id in the store, because a claim that is lost would wait for the end of its lease.
Short writes that wait for a request of the same client travel together (`http_batch`). A server that is full answers 503 with Retry-After,
and the client waits as long as it does so.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import wraps
from types import MappingProxyType
from typing import Any, TypeVar, cast, get_type_hints
from urllib.parse import unquote, urlsplit
from weakref import WeakKeyDictionary

import httpx

from agentlightning.contracts.store import LightningStore, RolloutState
from agentlightning.errors import LeaseLost, LightningError, NotFound, StoreError, StoreUnavailable, StoreVersionError, WireError
from agentlightning.stores.common import printable
from agentlightning.stores.http_batch import BATCH_PATH, BATCHED, Answer, Batcher, SentCall
from agentlightning.stores.serialization import decode, encode
from agentlightning.types import Attempt, AttemptStatus, Mode, Rollout, RolloutStatus, new_id

logger = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])
PREFIX = "/store/v1"
REQUEST_HEADER = "X-AGL-Request-Id"
"""Header with the id of a `once` call."""
CONTENT_TYPE = "application/octet-stream"
"""Of every request, and of every answer of a store."""
RETRIED = frozenset({408, 502, 503, 504})
"""Answers to a request that was not done: it stalled, the store is full, or a proxy waits while the server starts again."""
OUTAGE = 5.0
"""Seconds without an answer before the log says so."""
LONG_POLL = 20.0
"""Maximum seconds of one `wait` request; proxies cut longer connections."""


@dataclass(frozen=True, slots=True)
class Method:
    """One call of the contract."""

    arguments: Any
    """Types of its arguments, in order."""
    keywords: tuple[str, ...]
    """Names of the last arguments, which the contract takes by keyword."""
    result: Any
    once: bool

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Method:
        """Read the types from the contract's method."""
        hints = get_type_hints(function)
        parameters = list(inspect.signature(function).parameters.values())[1:]
        keywords = tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)
        types = tuple(hints[parameter.name] for parameter in parameters)
        return cls(tuple[types], keywords, hints["return"], once=function.__name__ in ("finish", "cancel", "delete"))


METHODS = MappingProxyType(
    {name: Method.of(method) for name, method in vars(LightningStore).items() if inspect.iscoroutinefunction(method) and name != "close"}
)
ERRORS = MappingProxyType(
    {error.__name__: error for error in (StoreError, StoreUnavailable, NotFound, LeaseLost, StoreVersionError, WireError)}
)
"""Errors of calls; any other error of the server arrives as a `StoreError`."""


def _why(answer: httpx.Response) -> str:
    """The reason of a server that cannot answer now."""
    try:
        return decode(answer.content, tuple[str, str])[1]
    except WireError:
        return f"HTTP {answer.status_code}"


def _remote(method: F) -> F:
    """The same method, as a call to the server."""
    signature = inspect.signature(method)

    @wraps(method)
    async def call(client: StoreClient, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(client, *args, **kwargs)
        bound.apply_defaults()
        arguments = (*bound.args[1:], *bound.kwargs.values())
        return await client.call(
            method.__name__, *([*value] if isinstance(value, Collection) and not isinstance(value, str) else value for value in arguments)
        )

    return cast(F, call)


@dataclass(frozen=True, slots=True)
class _Connection:
    """The way to the server from one event loop."""

    client: httpx.AsyncClient
    batcher: Batcher


class StoreClient:
    """A `LightningStore` behind HTTP. Retries connection errors for `patience` seconds, and logs an outage that lasts."""

    def __init__(self, url: str, token: str, *, patience: float = 30.0) -> None:
        self.url, self._token, self._patience = url.rstrip("/"), token, patience
        self._connections: WeakKeyDictionary[asyncio.AbstractEventLoop, _Connection] = WeakKeyDictionary()
        self._closed = False
        self._outage = False
        """Whether the log says that the store does not answer."""

    def __repr__(self) -> str:
        return f"StoreClient({self.url!r})"

    def _connection(self) -> _Connection:
        """The connections of the running event loop."""
        if self._closed:
            raise StoreError(f"The client of the store at {self.url} is closed. Open another one.")
        loop = asyncio.get_running_loop()
        if loop not in self._connections:
            client = httpx.AsyncClient(
                base_url=self.url + PREFIX,
                headers={"Authorization": f"Bearer {self._token}", "Content-Type": CONTENT_TYPE},
                timeout=httpx.Timeout(LONG_POLL + 10, connect=5),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
                trust_env=False,  # proxies of the environment are for other traffic
            )
            self._connections[loop] = _Connection(client, Batcher(self._send))
        return self._connections[loop]

    async def call(self, name: str, *arguments: Any) -> Any:
        """Do a call of `METHODS` on the server."""
        method = METHODS[name]
        call = SentCall(name, new_id() if method.once else None, encode(arguments))
        connection = self._connection()
        answer = await (connection.batcher.call(call) if name in BATCHED else self._post(call))
        if answer.status in RETRIED:  # the rest of its batch was done
            answer = await self._post(call)
        return self._read(name, method.result, answer)

    async def _send(self, calls: Sequence[SentCall]) -> list[Answer]:
        """Do several calls in one request."""
        if len(calls) == 1:
            return [await self._post(calls[0])]
        answers: list[Answer] = self._read(BATCH_PATH, list[Answer], await self._post(SentCall(BATCH_PATH, None, encode(calls))))
        if len(answers) != len(calls):
            raise StoreError(f"The store at {self.url} answered {len(answers)} of {len(calls)} calls. Use the same version on both sides.")
        return answers

    async def _post(self, call: SentCall) -> Answer:
        """Do a request until it has its answer."""
        headers = {REQUEST_HEADER: call.request} if call.request is not None else {}
        outage, pause = time.monotonic(), 0.05  # since when the server does not answer
        began = outage
        while True:
            failure: Exception | None = None
            try:
                response = await self._connection().client.post(f"/{call.name}", content=call.body, headers=headers)
            except httpx.TransportError as error:
                failure, reason = error, f"{type(error).__name__} {error}".strip()
            else:
                if response.status_code not in RETRIED:
                    if self._outage:
                        self._outage = False
                        logger.warning("The store at %s answers again.", self.url)
                    return Answer(response.status_code, response.content)
                reason = _why(response)
                if retry_after := _retry_after(response):  # it lives, so this is no outage
                    self._tell(began, "is full (HTTP 503)")
                    await asyncio.sleep(retry_after * random.uniform(1, 1.5))  # noqa: S311 (a pause)
                    outage = time.monotonic()
                    continue
            self._tell(began, f"does not answer ({reason})")
            if time.monotonic() - outage + pause > self._patience:
                raise StoreError(
                    f"The store at {self.url} did not answer `{call.name}` within {self._patience:.0f} seconds ({reason}). "
                    "Check that it runs at that address."
                ) from failure
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _tell(self, began: float, trouble: str) -> None:
        """Log trouble that lasts, once."""
        if time.monotonic() - began > OUTAGE and not self._outage:
            self._outage = True
            logger.warning("The store at %s %s. Trying again.", self.url, trouble)

    def _read(self, name: str, result: Any, answer: Answer) -> Any:
        if answer.status == 200:
            return decode(answer.body, result)
        if answer.status == 401:
            raise StoreError(f"The store at {self.url} refused the token. Give the token that `agl serve` printed, or set AGL_TOKEN.")
        try:
            kind, message = decode(answer.body, tuple[str, str])
        except WireError:
            text = answer.body[:200].decode(errors="replace").strip()
            told = f"HTTP {answer.status} ({text})" if text else f"HTTP {answer.status}"
            raise StoreError(f"The server at {self.url} is not a store: it answered `{name}` with {told}. Check host and port.") from None
        error: type[LightningError] = ERRORS.get(kind, StoreError)
        raise error(message)

    add = _remote(LightningStore.add)
    begin = _remote(LightningStore.begin)
    heartbeat = _remote(LightningStore.heartbeat)
    record = _remote(LightningStore.record)
    cancel = _remote(LightningStore.cancel)
    attempt = _remote(LightningStore.attempt)
    read = _remote(LightningStore.read)
    records = _remote(LightningStore.records)
    list = _remote(LightningStore.list)
    counts = _remote(LightningStore.counts)
    put = _remote(LightningStore.put)
    delete = _remote(LightningStore.delete)
    compact = _remote(LightningStore.compact)
    publish = _remote(LightningStore.publish)
    policies = _remote(LightningStore.policies)

    async def claim(
        self, worker: str, *, lease: float, limit: int = 1, modes: Collection[Mode] | None = None, request: str | None = None
    ) -> list[tuple[Rollout, Attempt]]:
        chosen = None if modes is None else [*modes]
        return await self.call("claim", worker, lease, limit, chosen, request or new_id())  # its name survives the server

    async def finish(self, attempt_id: str, status: AttemptStatus, *, error: str | None = None, retry: bool = False) -> RolloutState:
        return await self.call("finish", attempt_id, status, printable(error), retry)

    async def wait(self, after: int, *, timeout: float | None = None, status: Collection[RolloutStatus] | None = None) -> int:
        chosen = None if status is None else [*status]
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LONG_POLL if deadline is None else max(0.0, deadline - time.monotonic())
            seq: int = await self.call("wait", after, min(left, LONG_POLL), chosen)
            if seq > after or (deadline is not None and time.monotonic() >= deadline):
                return seq

    async def close(self) -> None:
        """Close the running loop's connections. Those of other loops end with their loops; the store itself stays open."""
        self._closed = True
        connection = self._connections.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            await connection.client.aclose()


def _retry_after(response: httpx.Response) -> int | None:
    """The seconds to wait for a store that is full. None for the answer of a proxy, whose store is gone."""
    seconds = response.headers.get("Retry-After", "")
    from_store = response.status_code == 503 and response.headers.get("Content-Type") == CONTENT_TYPE
    return int(seconds) if from_store and seconds.isdecimal() else None


def open_http(address: str, *, patience: float = 30.0) -> StoreClient:
    """Open the store at `http://token@host:port` (or https). The token can also come from the variable `AGL_TOKEN`."""
    url, token = split_address(address)
    return StoreClient(url, token, patience=patience)


def split_address(address: str) -> tuple[str, str]:
    """Return URL and token of `http://token@host:port`; the token from `AGL_TOKEN` if the address has none. Raises `StoreError`."""
    parts = urlsplit(address)
    token = unquote(parts.username or "") or os.environ.get("AGL_TOKEN", "")
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme not in ("http", "https") or not host:
        raise StoreError(f"{address!r} is not the address of a store. Write http://token@host:port.")
    if not token:
        raise StoreError(f"The store at {host} needs a token. Write http://TOKEN@{host}, or set AGL_TOKEN to it. `agl serve` prints it.")
    return f"{parts.scheme}://{host}{parts.path}".rstrip("/"), token
