"""The gateway's address: limits of connections, of time for the headers of a request, of names for a loopback address."""

from __future__ import annotations

import asyncio
import socket
from errno import EADDRINUSE
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from agentlightning.errors import GatewayError
from agentlightning.gateway.api.answers import json_response
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.limits import FULL, most_connections

HEADER_TIMEOUT = 20.0
"""Seconds from the first byte of a request, or the opening of its connection, to the end of its headers."""
MAX_HEADERS = 65_536
"""Bytes of unfinished headers. uvicorn has no limit of its own."""
ASYNC_HEADER = "x-stainless-async"
"""Of OpenAI's and Anthropic's clients: `async:asyncio`, or `false`."""
PROBES = (0.01, 0.2, 0.6, 1.8, 0.0)
"""Seconds after each sign of life to a client that has closed its sending side and waits for its answer. Clients limit their number."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""An interim response. Every HTTP/1.1 client ignores it, and a closed one answers it with a reset."""
LOCAL_NAMES = ("localhost", "*.localhost", "*.local", "*.internal")
"""Names that a loopback address may have. No public name server answers for them, so no page elsewhere can take one."""

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol
else:
    Protocol = AutoHTTPProtocol


class TimedProtocol(Protocol):
    """Uvicorn's protocol. It closes a connection whose next request does not complete its headers in time, and one above the limit.

    An idle connection between two requests has uvicorn's own limit.
    """

    _deadline: asyncio.TimerHandle | None = None
    _waiting = 0
    """Bytes since the last complete headers."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.write(FULL)
            transport.close()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._waiting = 0 if self._is_answering else self._waiting + len(data)
        if self._waiting > MAX_HEADERS:
            self.transport.close()
        self._watch()

    def eof_received(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]  # uvicorn's own is typed as None
        """See `asyncio.Protocol`. A client may close its sending side after a request and still read the answer.

        A client that went away sends the same end. A few interim responses tell the two apart; later, the answer itself does.
        An end in the middle of a request or of an answer closes the connection.
        """
        cycle: Any = self.cycle
        if not self._is_answering or cycle.more_body or cycle.response_started:
            return False
        cycle.keep_alive = False
        self._probe(*PROBES)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._unwatch()
        super().connection_lost(exc)

    def _probe(self, pause: float, *pauses: float) -> None:
        cycle: Any = self.cycle
        if not self._is_answering or cycle.response_started or self.transport.is_closing() or cycle.scope["http_version"] == "1.0":
            return
        self.transport.write(CONTINUE)
        if pauses:
            self.loop.call_later(pause, lambda: self._probe(*pauses))

    @property
    def _is_answering(self) -> bool:
        cycle: Any = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _watch(self) -> None:
        if self._is_answering:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_TIMEOUT, self._give_up)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if not self._is_answering:
            self.transport.close()


def local_names_only(app: ASGIApp) -> ASGIApp:
    """The app for a loopback address. It refuses requests that reached it by another name, as those of a page elsewhere would."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host") if scope["type"] == "http" else None
        if host is None or _is_local(host):
            await app(scope, receive, send)
            return
        text = f"The Host header is {host[:100]!r}, and this gateway serves its own machine. Use http://localhost with its port."
        await json_response(Refused(text, code="host_not_allowed").body, 403)(scope, receive, send)

    return checked


def closes_for_async_clients(app: ASGIApp) -> ASGIApp:
    """The app, with one connection for each answer to the asynchronous clients of OpenAI and Anthropic.

    Frameworks keep such a client for an address, also after its event loop has ended. Its next call would fail if it found a connection of
    the old loop in its pool.
    """

    async def closing(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        is_async = scope["type"] == "http" and Headers(scope=scope).get(ASYNC_HEADER, "").startswith("async")
        await app(scope, receive, send_closing if is_async else send)

    return closing


def _is_local(host: str) -> bool:
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return _is_address(name) or any(fnmatchcase(name.lower().rstrip("."), pattern) for pattern in LOCAL_NAMES)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    return ip_address(host).is_loopback if _is_address(host) else host.lower() == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address. Raises `GatewayError` when it is not free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with the protocol named: asyncio turns Nagle's delay (40 ms an answer) off only where it sees TCP
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        hint = f" Another program may use port {port}: choose another, or 0 for a free one." if error.errno == EADDRINUSE else ""
        raise GatewayError(f"Cannot listen on {host}:{port}: {error.strerror or error}.{hint}") from error
    return listener
