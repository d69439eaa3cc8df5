"""The sockets of one container, on this side: its only way to the gateway, and the watch that tells each side of the other's end."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from agentlightning_docker.inside import join

CONNECTIONS = 128
"""Open connections of one container, at most. One more is closed at once, so no agent uses up this process's files."""
SOCKET_MODE = 0o666
"""The image's user may be any. The folder above lets no other user of this machine in."""


class Relay:
    """Serves the sockets in a rollout's folder, as an async context manager."""

    def __init__(self, folder: Path, gateway: tuple[str, int]) -> None:
        self._folder, self._gateway = folder, gateway
        self._exits = ExitStack()
        self._joined: set[asyncio.Task[Any]] = set()
        self._watcher: asyncio.StreamWriter | None = None
        self.report: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        """How the agent ended; None: the container ended without a word."""

    @property
    def started(self) -> bool:
        """Whether the container has started."""
        return self._watcher is not None

    async def __aenter__(self) -> Relay:
        number = os.open(self._folder, os.O_RDONLY)
        self._exits.callback(os.close, number)
        folder = _short(number, self._folder)
        for name, serve in (("gateway.sock", self._to_gateway), ("watch.sock", self._watch)):
            server = await asyncio.start_unix_server(serve, folder / name)
            self._exits.callback(server.close)
            (self._folder / name).chmod(SOCKET_MODE)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._exits.close()
        if self._watcher is not None:
            self._watcher.close()
        for task in self._joined:
            task.cancel()
        await asyncio.gather(*self._joined, return_exceptions=True)

    async def _to_gateway(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._joined) >= CONNECTIONS:
            writer.close()
            return
        self._joined.add(task)
        try:
            with suppress(OSError, asyncio.CancelledError):  # the gateway is stopping, or the container has ended
                await join(reader, writer, await asyncio.open_connection(*self._gateway))
        finally:
            self._joined.discard(task)
            writer.close()

    async def _watch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._watcher is not None:  # the first process of the container came first; this is the agent
            writer.close()
            return
        self._watcher = writer
        line = b""
        with suppress(OSError, ValueError):
            line = await reader.readline()
        if not self.report.done():
            self.report.set_result(json.loads(line) if line.endswith(b"\n") else None)
        writer.close()


def _short(number: int, folder: Path) -> Path:
    """An open folder by its number: the address of a socket has 107 bytes at most. (Without `/proc`, by its own path.)"""
    short = Path(f"/proc/self/fd/{number}")
    return short if short.is_dir() else folder
