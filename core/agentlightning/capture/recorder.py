"""The current rollout, and the only way for an attempt's spans and rewards to the store.

`current()` is a context variable. The runner sets it. Tasks, threads and jobs of thread pools inherit it from the code that starts them.
Records go to a bounded buffer with one writer for each attempt. `flush` returns when the store has all of them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from itertools import islice
from threading import Lock
from typing import Any
from weakref import WeakMethod, WeakSet

from agentlightning.capture.end_calls import end_calls
from agentlightning.capture.prompts import prompt_note
from agentlightning.capture.threads import follow_rollouts
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import LightningError, RewardError
from agentlightning.types import JSON, LLM, Attempt, Record, Reward, Rollout, Span

log = logging.getLogger("agentlightning.capture")
KEY_HEADER = "X-AGL-Key"
"""Request header from an adapter's HTTP hook: the attempt's key."""
AGENT_HEADER = "X-AGL-Agent"
"""Header with the name of the agent that calls, percent-encoded. An adapter of a framework sends it; an agent may, too."""
CALL_HEADER = "X-AGL-Call-Id"
"""Request header: the desired id of the call. Response header: its actual id."""

_current: ContextVar[Recorder | None] = ContextVar("agentlightning_recorder", default=None)
_detached: ContextVar[bool] = ContextVar("agentlightning_detached", default=False)
"""True in a block that the program took out of every rollout."""


class Recorder:
    """Takes an attempt's records from any thread; one task writes them to the store, in order."""

    LIMIT = 4096
    """Most records in the buffer. One more raises an error in the adding thread, so that nothing is lost in silence."""
    TOGETHER = 256
    """Most records in one call of the store, which limits the size of a call."""

    def __init__(self, store: LightningStore, rollout: Rollout, attempt: Attempt, llm: LLM) -> None:
        self.store, self.rollout, self.attempt = store, rollout, attempt
        self.llm = replace(llm, prompts={**llm.prompts, **rollout.prompts}, on_prompt=_without_owning(WeakMethod(self._record_prompt)))
        """For the agent: it has the prompts of the rollout, and records those that the agent asks for."""
        self._prompts: set[tuple[str, str]] = set()
        self._loop = asyncio.get_running_loop()
        self._buffer: deque[Record] = deque()
        self._lock = Lock()
        self._error: BaseException | None = None
        self._closed = False
        self.rewards: list[Reward] = []
        """The rewards of the attempt itself, not of a span or call."""
        self._writer: asyncio.Task[None] | None = None
        _open_recorders().add(self)

    @property
    def closed(self) -> bool:
        """Whether it takes no more records, because its attempt has ended."""
        return self._closed

    def add(self, record: Record) -> None:
        """Queue a record. Safe from any thread. A framework may end a span after its attempt, because the agent left a stream early. That
        span is dropped with a warning. Any other late record is an error."""
        if self._error is not None:
            raise LightningError(f"Attempt {self.attempt.id} lost a record: {self._error}. Check the store.") from self._error
        with self._lock:
            if self._closed and isinstance(record, Span) and record.kind != "note":
                text = "Attempt %s ended before its %s %r, so that span is not recorded. Close streams that your agent leaves early."
                log.warning(text, self.attempt.id, record.kind, record.name)
                return
            if self._closed:
                raise LightningError(
                    f"Attempt {self.attempt.id} is closed, so it takes no {type(record).__name__.lower()}. Check whether a thread or task "
                    "of the agent still runs after its end."
                )
            if len(self._buffer) >= self.LIMIT:
                raise LightningError(
                    f"Attempt {self.attempt.id} has {self.LIMIT} records that the store has not taken. Check whether its disk is full."
                )
            self._buffer.append(record)
            if isinstance(record, Reward) and record.span_id is None and record.call_id is None:
                self.rewards.append(record)
        self._loop.call_soon_threadsafe(self._start_writer)

    def _record_prompt(self, name: str, text: str) -> None:
        """Record a prompt of the agent, each text once."""
        with self._lock:
            is_new = (name, text) not in self._prompts
            self._prompts.add((name, text))
        if is_new:
            self.add(prompt_note(self.attempt.id, name, text))

    def _start_writer(self) -> asyncio.Task[None]:
        if self._writer is None or self._writer.done():
            self._writer = self._loop.create_task(self._write())
        return self._writer

    async def _write(self) -> None:
        """Write the buffer to the store until it is empty."""
        while self._buffer and self._error is None:
            with self._lock:
                batch = list(islice(self._buffer, self.TOGETHER))
            try:
                await self.store.record(batch)
            except Exception as error:
                self._error = error
                return
            with self._lock:
                for _ in batch:
                    self._buffer.popleft()

    async def flush(self) -> None:
        """Return when the store has every record. Raises the store's error."""
        while self._buffer and self._error is None:
            await asyncio.shield(self._start_writer())
        if self._error is not None:
            raise LightningError(
                f"Attempt {self.attempt.id} lost {len(self._buffer)} records: {self._error}. Check the store."
            ) from self._error

    async def close(self) -> None:
        """End the attempt's calls, flush, then take no more records."""
        await end_calls(self.llm)
        try:
            while not self._closed:
                await self.flush()
                with self._lock:
                    self._closed = not self._buffer
        finally:
            self._closed = True
            _open_recorders().discard(self)
            if self._writer is not None:
                self._writer.cancel()


def current() -> Recorder | None:
    """The recorder of the current rollout, or None outside one."""
    return _current.get()


def detached() -> bool:
    """Whether the program took the calling code out of every rollout: `agl.attach(None)`."""
    return _detached.get()


def open_recorders() -> list[Recorder]:
    """The recorders of this process whose attempts have not ended."""
    return _open_recorders().all()


@contextmanager
def use(recorder: Recorder) -> Generator[Recorder]:
    """Make a recorder current for the block."""
    follow_rollouts(_inside)
    token, outer = _current.set(recorder), _detached.set(False)
    try:
        yield recorder
    finally:
        _detached.reset(outer)
        _current.reset(token)


@contextmanager
def detach() -> Generator[None]:
    """Take the block out of every rollout."""
    token, outer = _current.set(None), _detached.set(True)
    try:
        yield
    finally:
        _detached.reset(outer)
        _current.reset(token)


def _inside() -> bool:
    """Whether new threads must take the context of the calling code."""
    return _current.get() is not None or _detached.get()


def _without_owning(method: WeakMethod[Callable[[str, str], None]]) -> Callable[[str, str], None]:
    """A function that calls the method as long as its recorder lives, without keeping the recorder alive."""

    def call(name: str, text: str) -> None:
        if (bound := method()) is not None:
            bound(name, text)

    return call


class _OpenRecorders:
    """A set that many threads change. A recorder that nobody closes leaves it with its last reference."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._recorders: WeakSet[Recorder] = WeakSet()

    def add(self, recorder: Recorder) -> None:
        with self._lock:
            self._recorders.add(recorder)

    def discard(self, recorder: Recorder) -> None:
        with self._lock:
            self._recorders.discard(recorder)

    def all(self) -> list[Recorder]:
        with self._lock:
            return list(self._recorders)


@cache
def _open_recorders() -> _OpenRecorders:
    return _OpenRecorders()


def reward(value: float, *, name: str = "reward", span: Span | str | None = None, call: str | None = None, source: str = "agent") -> Reward:
    """Reward the current attempt, or one step of it: a span (a tool call, a model call), or a model call by its id (the answer's
    `system_fingerprint`).

    Raises `RewardError` for a value that is not a finite number, or for a span together with a call. Raises `LightningError` outside a
    rollout.
    """
    recorder = _require("reward")
    if span is not None and call is not None:
        raise RewardError(f"The reward {name!r} names a span and a call. Name one of them, because a reward counts once.")
    span_id = span.id if isinstance(span, Span) else span
    record = Reward(attempt_id=recorder.attempt.id, value=checked_reward(value), name=name, span_id=span_id, call_id=call, source=source)
    recorder.add(record)
    return record


def note(text: str, **attributes: JSON) -> Span:
    """Record a note in the current attempt. `agl show` prints it."""
    recorder = _require("note")
    span = Span(attempt_id=recorder.attempt.id, kind="note", name=text, attributes=attributes)
    recorder.add(span)
    return span


def checked_reward(value: Any) -> float:
    """The value as a float. Raises `RewardError` unless it is a finite number."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError("text is no number")
        number = float(value)
    except Exception as error:  # a tensor of several elements raises a RuntimeError, a huge integer an OverflowError
        raise RewardError(f"The reward is {value!r:.80}. Use a finite number.") from error
    if not math.isfinite(number):
        raise RewardError(f"The reward is {number}. Use a finite number.")
    return number


def _require(function: str) -> Recorder:
    recorder = current()
    if recorder is None:
        raise LightningError(
            f"agl.{function}() was called outside a rollout. Call it inside the agent function, or within `with agl.rollout(task):`."
        )
    return recorder
