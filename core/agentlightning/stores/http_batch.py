"""Sends the writes of one event loop together, so that they share a request and the server's next commit.

A write that finds none under way is sent at once. Those that arrive until its answer go together in the next request, in their order. Each
has its own answer: one that the store refuses does not hold up the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

BATCHED = frozenset({"add", "begin", "cancel", "claim", "finish", "heartbeat", "record"})
"""The calls that may share a request: short writes."""
BATCH_PATH = "calls"
"""In place of a method: a list of `SentCall`, answered by a list of `Answer`."""
MAX_CALLS = 256
"""Maximum number of calls in one request."""
MAX_BYTES = 4 * 2**20
"""Maximum bytes of arguments in a request of several calls."""


class SentCall(NamedTuple):
    """One call on its way to the server."""

    name: str
    request: str | None
    """The id of a call that must not be done twice."""
    body: bytes
    """Its arguments."""


class Answer(NamedTuple):
    """The server's answer to one call."""

    status: int
    """As in HTTP."""
    body: bytes
    """The result, or the name and the text of an error."""


class Batcher:
    """Has at most one request under way. `send` does calls and returns an answer for each; an error of it reaches every caller."""

    def __init__(self, send: Callable[[list[SentCall]], Awaitable[list[Answer]]]) -> None:
        self._send = send
        self._waiting: deque[tuple[SentCall, asyncio.Future[Answer]]] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def call(self, call: SentCall) -> Answer:
        """Do a call. A caller that is cancelled before its turn takes its call back."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all())
        return await future

    async def _send_all(self) -> None:
        while calls := self._next():
            try:
                answers = await self._send([call for call, _ in calls])
            except Exception as error:
                for _, future in calls:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(calls, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        self._sender = None  # in the same step in which nothing waited; a task would keep its loop alive

    def _next(self) -> list[tuple[SentCall, asyncio.Future[Answer]]]:
        """Take the calls of the next request."""
        calls: list[tuple[SentCall, asyncio.Future[Answer]]] = []
        size = 0
        while self._waiting and len(calls) < MAX_CALLS:
            call, future = self._waiting[0]
            size += len(call.body)
            if calls and size > MAX_BYTES:
                break
            self._waiting.popleft()
            if not future.done():
                calls.append((call, future))
        return calls
