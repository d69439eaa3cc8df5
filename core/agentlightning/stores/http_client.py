"""A store behind HTTP, and the table of calls that client and server share.

A call is a POST to `/store/v1/<method>` with `Authorization: Bearer <token>`. Arguments, results and errors are bytes of `serialization`.
The client repeats a call after a lost answer. If a repetition would change something (`once`), the call carries an id, and the server
repeats its first answer to that id.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import unquote, urlsplit
from weakref import WeakKeyDictionary

import httpx

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import LeaseLost, LightningError, NotFound, StoreError, StoreVersionError, WireError
from agentlightning.stores.common import printable
from agentlightning.stores.serialization import decode, encode
from agentlightning.types import Attempt, AttemptStatus, Mode, Policy, Record, Rollout, RolloutStatus, new_id

PREFIX = "/store/v1"
REQUEST_HEADER = "X-AGL-Request-Id"
"""Header with the id of a `once` call."""
LONG_POLL = 20.0
"""Maximum seconds of one `wait` request; proxies cut longer connections."""


@dataclass(frozen=True, slots=True)
class Method:
    """One call of the contract."""

    arguments: Any
    """Types of its arguments, in order."""
    result: Any
    keywords: tuple[str, ...] = ()
    """Names of the last arguments, which the contract takes by keyword."""
    once: bool = False


METHODS = MappingProxyType(
    {
        "add": Method(tuple[list[Rollout]], None),
        "claim": Method(tuple[str, float, int, list[Mode] | None], list[tuple[Rollout, Attempt]], ("lease", "limit", "modes"), once=True),
        "begin": Method(tuple[Rollout, str, float], Attempt, ("lease",)),
        "heartbeat": Method(tuple[str, float], None, ("lease",)),
        "record": Method(tuple[list[Record]], None),
        "finish": Method(tuple[str, AttemptStatus, str | None, bool], RolloutState, ("error", "retry"), once=True),
        "cancel": Method(tuple[list[str]], int, once=True),
        "attempt": Method(tuple[str | None, str | None], tuple[Rollout, Attempt], ("id", "key")),
        "read": Method(tuple[str], tuple[RolloutState, tuple[AttemptRecords, ...]]),
        "records": Method(tuple[str], AttemptRecords),
        "list": Method(
            tuple[int, int, list[RolloutStatus] | None, Mode | None, int | None, str | None, Literal["added", "changed"]],
            tuple[list[RolloutState], int],
            ("after", "limit", "status", "mode", "step", "group", "order"),
        ),
        "wait": Method(tuple[int, float | None], int, ("timeout",)),
        "publish": Method(tuple[Policy], None),
        "policies": Method(tuple[str | None], list[Policy]),
    }
)
ERRORS = MappingProxyType({error.__name__: error for error in (StoreError, NotFound, LeaseLost, StoreVersionError, WireError)})
"""Errors of calls; any other error of the server arrives as a `StoreError`."""


class StoreClient:
    """A `LightningStore` behind HTTP. Retries connection errors for `patience` seconds."""

    def __init__(self, url: str, token: str, *, patience: float = 30.0) -> None:
        self.url, self._token, self._patience = url.rstrip("/"), token, patience
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()
        self._closed = False

    def __repr__(self) -> str:
        return f"StoreClient({self.url!r})"

    def _client(self) -> httpx.AsyncClient:
        """The connections of the running event loop."""
        if self._closed:
            raise StoreError(f"The client of the store at {self.url} is closed. Open another one.")
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = httpx.AsyncClient(
                base_url=self.url + PREFIX,
                headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/octet-stream"},
                timeout=httpx.Timeout(LONG_POLL + 10, connect=5),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
                trust_env=False,  # proxies of the environment are for other traffic
            )
        return self._clients[loop]

    async def _call(self, name: str, *arguments: Any) -> Any:
        method = METHODS[name]
        body = encode(arguments)
        headers = {REQUEST_HEADER: new_id()} if method.once else {}
        deadline, pause = time.monotonic() + self._patience, 0.05
        while True:
            failure: Exception | None = None
            try:
                answer = await self._client().post(f"/{name}", content=body, headers=headers)
            except httpx.TransportError as error:
                failure, reason = error, f"{type(error).__name__} {error}".strip()
            else:
                if answer.status_code not in (502, 503, 504):  # a proxy's, while the server starts again
                    return self._read(name, method, answer)
                reason = f"HTTP {answer.status_code}"
            if time.monotonic() + pause > deadline:
                raise StoreError(
                    f"The store at {self.url} did not answer `{name}` within {self._patience:.0f} seconds ({reason}). "
                    "Check that it runs at that address."
                ) from failure
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _read(self, name: str, method: Method, answer: httpx.Response) -> Any:
        if answer.status_code == 200:
            return None if method.result is None else decode(answer.content, method.result)
        if answer.status_code == 401:
            raise StoreError(f"The store at {self.url} refused the token. Give the token that `agl serve` printed, or set AGL_TOKEN.")
        try:
            kind, message = decode(answer.content, tuple[str, str])
        except WireError:
            raise StoreError(
                f"The server at {self.url} is not a store: it answered `{name}` with HTTP {answer.status_code}. Check host and port."
            ) from None
        error: type[LightningError] = ERRORS.get(kind, StoreError)
        raise error(message)

    async def add(self, rollouts: Sequence[Rollout]) -> None:
        await self._call("add", list(rollouts))

    async def claim(
        self, worker: str, *, lease: float, limit: int = 1, modes: Collection[Mode] | None = None
    ) -> list[tuple[Rollout, Attempt]]:
        return await self._call("claim", worker, lease, limit, None if modes is None else list(modes))

    async def begin(self, rollout: Rollout, worker: str, *, lease: float) -> Attempt:
        return await self._call("begin", rollout, worker, lease)

    async def heartbeat(self, attempt_id: str, *, lease: float) -> None:
        await self._call("heartbeat", attempt_id, lease)

    async def record(self, records: Sequence[Record]) -> None:
        await self._call("record", list(records))

    async def finish(self, attempt_id: str, status: AttemptStatus, *, error: str | None = None, retry: bool = False) -> RolloutState:
        return await self._call("finish", attempt_id, status, printable(error), retry)

    async def cancel(self, rollout_ids: Sequence[str]) -> int:
        return await self._call("cancel", list(rollout_ids))

    async def attempt(self, *, id: str | None = None, key: str | None = None) -> tuple[Rollout, Attempt]:
        return await self._call("attempt", id, key)

    async def read(self, rollout_id: str) -> tuple[RolloutState, tuple[AttemptRecords, ...]]:
        return await self._call("read", rollout_id)

    async def records(self, attempt_id: str) -> AttemptRecords:
        return await self._call("records", attempt_id)

    async def list(
        self,
        *,
        after: int = 0,
        limit: int = 100,
        status: Collection[RolloutStatus] | None = None,
        mode: Mode | None = None,
        step: int | None = None,
        group: str | None = None,
        order: Literal["added", "changed"] = "added",
    ) -> tuple[list[RolloutState], int]:
        return await self._call("list", after, limit, None if status is None else [*status], mode, step, group, order)

    async def wait(self, after: int, *, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LONG_POLL if deadline is None else max(0.0, deadline - time.monotonic())
            seq: int = await self._call("wait", after, min(left, LONG_POLL))
            if seq > after or (deadline is not None and time.monotonic() >= deadline):
                return seq

    async def publish(self, policy: Policy) -> None:
        await self._call("publish", policy)

    async def policies(self, name: str | None = None) -> list[Policy]:
        return await self._call("policies", name)

    async def close(self) -> None:
        """Close the running loop's connections. Those of other loops end with their loops; the store itself stays open."""
        self._closed = True
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()


def open_http(address: str) -> StoreClient:
    """Open the store at `http://token@host:port` (or https). The token can also come from the variable `AGL_TOKEN`."""
    parts = urlsplit(address)
    token = unquote(parts.username or "") or os.environ.get("AGL_TOKEN", "")
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme not in ("http", "https") or not host:
        raise StoreError(f"{address!r} is not the address of a store. Write http://token@host:port.")
    if not token:
        raise StoreError(f"The store at {host} needs a token. Write http://TOKEN@{host}, or set AGL_TOKEN to it. `agl serve` prints it.")
    return StoreClient(f"{parts.scheme}://{host}{parts.path}", token)
