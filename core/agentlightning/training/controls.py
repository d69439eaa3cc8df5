"""The user's side of a run: progress reports, and a stop by Ctrl-C or `kill`."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from agentlightning.training.progress import Progress

T = TypeVar("T")


class Stopped(Exception):  # not an error: the user asked for it
    """The user asked the run to stop."""


@dataclass(frozen=True, slots=True)
class Controls:
    """Reports to the user, and stops when the user asks."""

    progress: Progress
    stop: asyncio.Event

    def check(self) -> None:
        """Raise `Stopped` if the user asked the run to stop."""
        if self.stop.is_set():
            raise Stopped

    async def wait(self, change: Awaitable[Any], *others: asyncio.Future[Any]) -> None:
        """Wait until `change`, or one of `others`, is done. Raises `Stopped` if the user asks for it first."""
        changed, stopped = asyncio.ensure_future(change), asyncio.create_task(self.stop.wait())
        try:
            await asyncio.wait([changed, stopped, *others], return_when=asyncio.FIRST_COMPLETED)
            self.check()
            for future in (changed, *others):
                if future.done():
                    future.result()
        finally:
            changed.cancel()
            stopped.cancel()
            await asyncio.gather(changed, stopped, return_exceptions=True)


def run_in_thread(main: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a thread with an event loop of its own. The first Ctrl-C or SIGTERM sets its event, the second cancels it."""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    result: Future[T] = Future()
    tasks: list[asyncio.Task[T]] = []

    def body() -> None:
        asyncio.set_event_loop(loop)
        tasks.append(loop.create_task(main(stop)))
        try:
            result.set_result(loop.run_until_complete(tasks[0]))
        except BaseException as error:
            result.set_exception(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    threading.Thread(target=body, name="agentlightning", daemon=True).start()
    interrupts = 0
    with _interrupted_by_sigterm():
        while True:
            try:
                wait([result])  # not Thread.join: in Python 3.11 an interrupted join takes a running thread for a stopped one
                return result.result()
            except KeyboardInterrupt:
                interrupts += 1
                if not result.done():
                    loop.call_soon_threadsafe(stop.set if interrupts == 1 else tasks[0].cancel)
            except (CancelledError, asyncio.CancelledError, Stopped) as error:
                raise KeyboardInterrupt from error


@contextmanager
def _interrupted_by_sigterm() -> Generator[None]:
    """Let SIGTERM, with which `kill` and job schedulers stop a program, act as Ctrl-C. A handler of the program's own stays."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
