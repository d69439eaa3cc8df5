"""Threads and pools that start inside a rollout work in its context.

A thread takes the context in which it starts. A job of a pool takes the context in which it is submitted, whoever started the pool's
threads. Outside rollouts, the standard library works as it always does.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import cache, wraps
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from multiprocessing.pool import ThreadPool

T = TypeVar("T")
POOL_METHODS = ("apply_async", "_map_async", "imap", "imap_unordered")
"""Methods of `multiprocessing.pool.ThreadPool` that submit jobs. Its other methods call these."""

_of_pool: ContextVar[bool] = ContextVar("agentlightning_starting_pool_threads", default=False)
"""True while a pool may start threads: they serve every rollout, so they follow none."""


class _Followed:
    """Whether the standard library follows rollouts already."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.done = False


@cache
def _followed() -> _Followed:
    return _Followed()


def follow_rollouts(inside: Callable[[], bool]) -> None:
    """Patch the standard library once in this process. `inside`: whether the calling code runs in a rollout."""
    if _followed().done:
        return
    with _followed().lock:
        if not _followed().done:
            _follow_threads(inside)
            _follow_executors(inside)
            _follow_pools(inside)
            _followed().done = True


def _follow_threads(inside: Callable[[], bool]) -> None:
    start = Thread.start

    @wraps(start)
    def start_inside(self: Thread) -> None:
        # Python 3.14 has a `context` of the thread, which the program may set.
        if inside() and not _of_pool.get() and self.ident is None and getattr(self, "_context", None) is None:
            run, context = self.run, copy_context()

            def run_in_context() -> None:
                del self.run  # the thread and this function would keep each other
                context.run(run)

            self.run = run_in_context
        start(self)

    Thread.start = start_inside


def _follow_executors(inside: Callable[[], bool]) -> None:
    submit = ThreadPoolExecutor.submit

    @wraps(submit)
    def submit_inside(pool: ThreadPoolExecutor, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        if not inside():
            return submit(pool, fn, *args, **kwargs)
        job = _in_this_context(fn)
        token = _of_pool.set(True)
        try:
            return submit(pool, job, *args, **kwargs)
        finally:
            _of_pool.reset(token)

    ThreadPoolExecutor.submit = submit_inside


def _follow_pools(inside: Callable[[], bool]) -> None:
    from multiprocessing.pool import ThreadPool  # only a rollout needs it, and every command would load it

    def follow(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def submit_inside(pool: ThreadPool, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return method(pool, _in_this_context(func) if inside() else func, *args, **kwargs)

        return submit_inside

    start = ThreadPool.__init__

    @wraps(start)
    def start_pool(self: ThreadPool, *args: Any, **kwargs: Any) -> None:
        token = _of_pool.set(True)
        try:
            start(self, *args, **kwargs)
        finally:
            _of_pool.reset(token)

    for name in POOL_METHODS:
        setattr(ThreadPool, name, follow(getattr(ThreadPool, name)))
    ThreadPool.__init__ = start_pool


def _in_this_context(function: Callable[..., T]) -> Callable[..., T]:
    """The function in the caller's context. Each call has a copy, because two threads cannot enter one context."""
    context = copy_context()

    def in_context(*args: Any, **kwargs: Any) -> T:
        return context.copy().run(function, *args, **kwargs)

    return in_context
