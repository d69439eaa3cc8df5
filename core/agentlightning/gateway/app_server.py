"""An ASGI app as a server in its own thread and event loop, so that nothing in this process can stop it from answering."""

from __future__ import annotations

import asyncio
import socket
from threading import Thread

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from agentlightning.errors import GatewayError
from agentlightning.gateway.listener import TimedProtocol, is_loopback, listen, local_names_only
from agentlightning.stores.http_server import STOPPING

SHUTDOWN = 5
"""Seconds for in-flight requests when the server stops. Then they are cancelled."""
RECORDING = 5
"""Seconds for a slow store to record them."""
KEEP_ALIVE = 75
"""Seconds that an idle connection stays open. No client keeps one longer."""


class AppServer:
    """Serves one app. Port 0 takes a free one."""

    def __init__(self, app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._app, self._host, self._port = app, host, port
        self._server: uvicorn.Server | None = None
        self._thread: Thread | None = None

    async def start(self) -> None:
        """Listen and serve. Raises `GatewayError` when the address is not free."""
        if self._server is not None:
            raise GatewayError("The server is already running. Stop it first.")
        listener = listen(self._host, self._port)
        self._port = listener.getsockname()[1]
        stopping = asyncio.Event()
        app = _tells_of_stop(self._app, stopping)
        config = uvicorn.Config(
            local_names_only(app) if is_loopback(self._host) else app,
            http=TimedProtocol,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            lifespan="on",
            ws="none",
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=SHUTDOWN,
        )
        server = self._server = _Server(config, stopping)
        self._thread = Thread(target=_serve, args=(server, listener), name="agentlightning-gateway", daemon=True)
        self._thread.start()
        while not server.started:
            if not self._thread.is_alive():
                self._server = None
                raise GatewayError(f"The server on {self._host}:{self._port} stopped during its start. See the log.")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Stop listening. In-flight requests have a few seconds to end. Idempotent."""
        server, thread, self._server = self._server, self._thread, None
        if server is None or thread is None:
            return
        server.should_exit = True
        await asyncio.to_thread(thread.join)

    @property
    def url(self) -> str:
        """The address on this machine: `http://host:port`."""
        if self._server is None:
            raise GatewayError("The server has no address yet. Start it first.")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104 (compared, not listened on)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping.set()
        await super().shutdown(sockets)


def _tells_of_stop(app: ASGIApp, stopping: asyncio.Event) -> ASGIApp:
    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope[STOPPING] = stopping
        await app(scope, receive, send)

    return told


def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    try:
        asyncio.run(_serve_and_record(server, listener))
    finally:
        listener.close()


async def _serve_and_record(server: uvicorn.Server, listener: socket.socket) -> None:
    await server.serve(sockets=[listener])
    # the end of the loop would cut off the records of the calls that it cancelled
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=RECORDING)
