"""A TCP proxy before PostgreSQL that loses what the test tells it to lose."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Literal

Loss = Literal["answer", "late"]


class Proxy:
    """Forwards connections. `lose` cuts the next one that commits: `answer` drops the server's answer, `late` cuts the client at once and
    gives the commit to the server later."""

    DELAY = 0.5

    def __init__(self, port: int) -> None:
        self._target = port
        self._loss: Loss | None = None
        self._after: set[asyncio.Task[None]] = set()
        self.losses = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.gather(*self._after)

    def lose(self, loss: Loss) -> None:
        self._loss = loss

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        back = asyncio.create_task(self._forward(server, to_client))
        with suppress(OSError):
            while data := await client.read(1 << 16):
                if self._loss is None or b"COMMIT" not in data:
                    to_server.write(data)
                    continue
                loss, self._loss = self._loss, None
                self.losses += 1
                back.cancel()
                if loss == "answer":
                    to_server.write(data)
                    await server.read(1 << 16)
                    to_server.close()
                else:
                    self._after.add(asyncio.create_task(self._deliver(to_server, data)))
                to_client.transport.abort()
                return
        back.cancel()
        to_client.close()
        to_server.close()

    async def _deliver(self, to_server: asyncio.StreamWriter, data: bytes) -> None:
        await asyncio.sleep(self.DELAY)
        with suppress(OSError):
            to_server.write(data)
            await to_server.drain()
            await asyncio.sleep(0.1)
        to_server.close()

    async def _forward(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await server.read(1 << 16):
                to_client.write(data)
        to_client.close()
