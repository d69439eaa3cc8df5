"""A proxy before an HTTP server that stalls, cuts and repeats requests, by a seed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import Any

FAULTS = ("stall", "cut before", "cut after", "cut in the answer", "twice", "twice, late")
LATE = 1.0
"""Seconds after the answer, when a request arrives for the second time."""


class FaultProxy:
    """Forwards each request on a connection of its own. A share of them meets a fault:

    - `stall`: the request, or its answer, waits for up to `stall` seconds.
    - `cut before`: the connection ends, and the server never sees the request.
    - `cut after`: the server answers, and the connection ends before the client gets a byte. `cut in the answer`: half-way.
    - `twice`: the server gets the request twice, and the client the second answer. `twice, late`: the second one comes after the answer.
    """

    def __init__(self, target: int, *, share: float, seed: int = 0, stall: float = 2.0) -> None:
        self._target, self._share, self._stall = target, share, stall
        self._random = random.Random(seed)
        self._round: list[str] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self.faults = Counter[str]()
        self.passed = 0

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(OSError, asyncio.IncompleteReadError):
            await self._answer(await _request(client), to_client)
        to_client.close()

    async def _answer(self, request: bytes, to_client: asyncio.StreamWriter) -> None:
        fault = self._next_fault() if self._random.random() < self._share else None
        if fault is None:
            self.passed += 1
        else:
            self.faults[fault] += 1
        if fault == "stall":
            await asyncio.sleep(self._random.random() * self._stall)
        if fault == "cut before":
            return to_client.transport.abort()
        answer = await self._ask(request)
        if fault == "twice":
            answer = await self._ask(request)
        if fault in ("cut after", "cut in the answer"):
            to_client.write(answer[: len(answer) // 2] if fault == "cut in the answer" else b"")
            await to_client.drain()
            return to_client.transport.abort()
        if fault == "stall":
            await asyncio.sleep(self._random.random() * self._stall)
        to_client.write(answer)
        await to_client.drain()
        if fault == "twice, late":
            self._tasks.add(asyncio.create_task(self._ask(request, LATE)))

    def _next_fault(self) -> str:
        """A fault of a shuffled round, so that few requests meet every kind."""
        if not self._round:
            self._round = self._random.sample(FAULTS, len(FAULTS))
        return self._round.pop()

    async def _ask(self, request: bytes, delay: float = 0.0) -> bytes:
        await asyncio.sleep(delay)
        server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        to_server.write(request)
        answer = await server.read(-1)  # until the server closes, as the request asks
        to_server.close()
        return answer


async def _request(client: asyncio.StreamReader) -> bytes:
    """One whole request, which asks the server to close its connection. Clients of these tests send a length."""
    head = (await client.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head[1:] if line}
    body = await client.readexactly(int(fields.get("content-length", "0")))
    kept = [line for line in head if not line.lower().startswith("connection:")][:-2]
    return "\r\n".join([*kept, "Connection: close", "", ""]).encode("latin-1") + body
