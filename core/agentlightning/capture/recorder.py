"""The current rollout, and the one way by which an attempt's spans and rewards reach the store.

`current()` is a context variable: set while a runner runs the agent, inherited by tasks and `asyncio.to_thread`. Records go to a
bounded buffer with one writer for each attempt; `flush` returns when everything that was added is in the store.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

from agentlightning.contracts.store import LightningStore
from agentlightning.errors import LightningError, RewardError
from agentlightning.types import JSON, LLM, Attempt, Record, Reward, Rollout, Span

KEY_HEADER = "X-AGL-Key"
"""Request header by which an adapter's HTTP hook says whose call it is (the attempt's key)."""
CALL_HEADER = "X-AGL-Call-Id"
"""Request header: the id that the call shall have. Response header: the id that it got."""

_current: ContextVar[Recorder | None] = ContextVar("agentlightning_recorder", default=None)


class Recorder:
    """Takes an attempt's records from any thread; one task writes them to the store, in order."""

    LIMIT = 4096
    """Records held at most before the adding thread is told so by an error: nothing is dropped in silence."""

    def __init__(self, store: LightningStore, rollout: Rollout, attempt: Attempt, llm: LLM) -> None:
        self.store, self.rollout, self.attempt, self.llm = store, rollout, attempt, llm
        self._loop = asyncio.get_running_loop()
        self._buffer: deque[Record] = deque()
        self._lock = Lock()
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._error: BaseException | None = None
        self._closed = False
        self.rewards: list[Reward] = []
        """Those of the attempt as a whole that passed through here."""
        self._writer = self._loop.create_task(self._write())

    def add(self, record: Record) -> None:
        """Queue a record. Safe from any thread."""
        if self._error is not None:
            raise LightningError(f"attempt {self.attempt.id}: an earlier record could not be stored: {self._error}") from self._error
        with self._lock:
            if self._closed:
                raise LightningError(
                    f"attempt {self.attempt.id} is closed, and a {type(record).__name__.lower()} came after; was a thread or task left "
                    "running when the agent returned, or timed out?"
                )
            if len(self._buffer) >= self.LIMIT:
                raise LightningError(
                    f"attempt {self.attempt.id}: {self.LIMIT} records wait for the store, which does not keep up; is its disk full?"
                )
            self._buffer.append(record)
            if isinstance(record, Reward) and record.span_id is None and record.call_id is None:
                self.rewards.append(record)
        self._loop.call_soon_threadsafe(self._notify)

    def _notify(self) -> None:
        self._empty.clear()
        self._wake.set()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            with self._lock:
                batch = list(self._buffer)
            if batch:
                try:
                    await self.store.record(batch)
                except Exception as error:
                    self._error = error
                    self._empty.set()
                    return
                with self._lock:
                    for _ in batch:
                        self._buffer.popleft()
            if not self._buffer:
                self._empty.set()

    async def flush(self) -> None:
        """Return when everything that was added is stored. Raises what the store raised."""
        while self._error is None:
            with self._lock:
                pending = bool(self._buffer)
            if not pending:
                return
            self._notify()
            await self._empty.wait()
        raise LightningError(f"attempt {self.attempt.id}: {len(self._buffer)} records could not be stored: {self._error}") from self._error

    async def close(self) -> None:
        """Flush, then stop the writer. A record that is added later is refused."""
        try:
            while True:
                await self.flush()
                with self._lock:
                    if not self._buffer:
                        self._closed = True
                        return
        finally:
            self._closed = True
            self._writer.cancel()


def current() -> Recorder | None:
    """The recorder of the rollout that runs here, or None outside one."""
    return _current.get()


@contextmanager
def use(recorder: Recorder) -> Generator[Recorder]:
    """Make a recorder current for the block."""
    token = _current.set(recorder)
    try:
        yield recorder
    finally:
        _current.reset(token)


def reward(value: float, *, name: str = "reward", span: Span | str | None = None, call: str | None = None, source: str = "agent") -> Reward:
    """Reward the current attempt, or one step of it: a span (a tool call, a model call), or a model call by its id, which its answer has
    as `system_fingerprint`.

    Raises `RewardError` when the value is not a finite number, or both a span and a call are named, and `LightningError` outside a rollout.
    """
    recorder = _require("reward")
    if span is not None and call is not None:
        raise RewardError(f"the reward {name!r} names a span and a call; expected one of them, for it counts once")
    span_id = span.id if isinstance(span, Span) else span
    record = Reward(attempt_id=recorder.attempt.id, value=checked_reward(value), name=name, span_id=span_id, call_id=call, source=source)
    recorder.add(record)
    return record


def note(text: str, **attributes: JSON) -> Span:
    """Record a note in the current attempt; `agl show` shows it."""
    recorder = _require("note")
    span = Span(attempt_id=recorder.attempt.id, kind="note", name=text, attributes=attributes)
    recorder.add(span)
    return span


def checked_reward(value: Any) -> float:
    """The value as a float; `RewardError` when it is not a finite number."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError("text is no number")
        number = float(value)
    except Exception as error:  # a tensor of several elements raises a RuntimeError, a huge integer an OverflowError
        raise RewardError(f"the reward is {value!r:.80}; expected a finite number") from error
    if not math.isfinite(number):
        raise RewardError(f"the reward is {number}; expected a finite number")
    return number


def _require(what: str) -> Recorder:
    recorder = current()
    if recorder is None:
        raise LightningError(
            f"agl.{what}() was called outside a rollout; call it inside the agent function, or within `with agl.rollout(task):`"
        )
    return recorder
