"""The load of a store's server: how many requests and bytes it works on at once, and how large and slow a body may be.

The bounds hold for all clients together, so a burst of runners cannot take the server's memory. Long polls wait without work and do not
count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from starlette.requests import Request

MAX_BODY = 64 * 2**20
"""Bytes of one body."""
MAX_REQUESTS = 256
"""Requests at once."""
MAX_BYTES = 128 * 2**20
"""Bytes of their bodies together."""
RETRY_AFTER = 1
"""Seconds that a refused client waits, at least."""
STALL = 20.0
"""Seconds without a further byte of a body, after which its request is given up."""


class Load:
    """Counts the requests that a server works on."""

    def __init__(self) -> None:
        self.requests = self.bytes = 0

    def admits(self, size: int) -> bool:
        """Whether there is room for a request with a body of `size` bytes."""
        return self.requests < MAX_REQUESTS and self.bytes + size <= MAX_BYTES

    @contextmanager
    def of(self, size: int) -> Generator[None]:
        """Count a request while the block works on it."""
        self.requests += 1
        self.bytes += size
        try:
            yield
        finally:
            self.requests -= 1
            self.bytes -= size


def expected_size(request: Request) -> int:
    """The bytes that the request announces, or the most that it may send."""
    length = request.headers.get("content-length", "")
    return min(int(length), MAX_BODY) if length.isdecimal() else MAX_BODY


async def read_body(request: Request) -> bytes | None:
    """The body, or None if it is larger than `MAX_BODY`. The rest of a large one is read, so that its client gets to the answer.

    Raises `TimeoutError` if the client stalls, and `ClientDisconnect`.
    """
    parts, size = list[bytes](), 0
    async with asyncio.timeout(STALL) as stall:
        async for part in request.stream():
            stall.reschedule(asyncio.get_running_loop().time() + STALL)
            size += len(part)
            if size <= MAX_BODY:
                parts.append(part)
            else:
                parts.clear()
    return b"".join(parts) if size <= MAX_BODY else None
