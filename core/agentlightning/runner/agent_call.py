"""One call of an agent: started, watched and stopped here. Whatever the agent raises stays inside.

An async agent runs in its own task, a synchronous one in its own thread. One that does not stop within the grace is abandoned: its task or
thread runs on, and nobody waits for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import functools
import inspect
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from agentlightning.errors import ConfigError

Agent = Callable[..., Any]
"""Called with the task's input, and with an `LLM` if it takes a second argument; sync or async. Returns the reward, or None."""
MESSAGE = 10_000
"""Characters of an exception's message, at most."""


class AgentStopped(BaseException):
    """Ends the thread of an agent. Python raises it between two of the agent's own instructions, so not inside a blocking call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an agent ended."""

    value: Any = None
    error: BaseException | None = None
    """What it raised, of any kind."""
    timed_out: bool = False
    abandoned: bool = False
    """It runs on."""


class AgentCall:
    """A running agent. Created in the context of its rollout."""

    def __init__(self, agent: Agent, arguments: tuple[Any, ...]) -> None:
        self._agent, self._arguments = agent, arguments
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[Outcome]
        if is_async(agent):
            self._ended = asyncio.create_task(self._in_task(), name="agentlightning-agent")
        else:
            self._ended = self._in_thread()

    async def wait(self, timeout: float, grace: float) -> Outcome:
        """Wait for its end, and stop it after `timeout` seconds. A cancellation stops it, too. Both wait up to `grace` seconds more."""
        try:
            await asyncio.wait([self._ended], timeout=timeout)
        except asyncio.CancelledError as cancelled:
            outcome = await self._stop(grace)
            cancelled.args = (outcome,)
            raise
        if self._ended.done():
            return self._ended.result()
        outcome = await self._stop(grace)
        return Outcome(error=outcome.error, timed_out=True, abandoned=outcome.abandoned)

    async def _stop(self, grace: float) -> Outcome:
        """Stop it, or abandon it after the grace."""
        if self._thread is None:
            self._ended.cancel()
        else:
            _raise_in(self._thread)
        with suppress(asyncio.CancelledError):  # somebody is in a hurry
            await asyncio.wait([self._ended], timeout=grace)
        if self._ended.done():
            return self._ended.result()
        if isinstance(self._ended, asyncio.Task):
            asyncio._unregister_task(self._ended)  # else the end of the event loop waits for it
            _abandoned.add(self._ended)
            self._ended.add_done_callback(_abandoned.discard)
        return Outcome(abandoned=True)

    async def _in_task(self) -> Outcome:
        try:
            return Outcome(value=await self._agent(*self._arguments))
        except BaseException as error:  # a KeyboardInterrupt of the agent would end the event loop
            return Outcome(error=error)

    def _in_thread(self) -> asyncio.Future[Outcome]:
        """Run a synchronous agent in its own thread: one that hangs must not block a pool."""
        future: Future[Outcome] = Future()
        future.set_running_or_notify_cancel()
        context = contextvars.copy_context()

        def body() -> None:
            try:
                outcome = Outcome(value=context.run(self._agent, *self._arguments))
            except BaseException as error:
                outcome = Outcome(error=error)
            future.set_result(outcome)

        self._thread = threading.Thread(target=body, name="agentlightning-agent", daemon=True)
        self._thread.start()
        return asyncio.wrap_future(future)


_abandoned: set[asyncio.Future[Any]] = set()
"""Tasks that nobody waits for. An event loop alone would lose them."""


def _raise_in(thread: threading.Thread) -> None:
    if thread.ident is not None and thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(AgentStopped))


def takes_llm(agent: Agent) -> bool:
    """Whether the agent takes `(task, llm)`, not `(task)`. Raises `ConfigError` if it takes neither."""
    try:
        signature = inspect.signature(agent)
    except (TypeError, ValueError):
        return True
    for arguments in ((0, 0), (0,)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 2
    raise ConfigError(f"The agent {getattr(agent, '__qualname__', agent)!r} takes {signature}. Expected (task, llm) or (task) alone.")


def is_async(agent: Agent) -> bool:
    """Whether calling the agent returns an awaitable."""
    while isinstance(agent, functools.partial):
        agent = agent.func
    return inspect.iscoroutinefunction(agent) or inspect.iscoroutinefunction(getattr(agent, "__call__", None))  # noqa: B004


def explain(error: BaseException) -> str:
    """The error and its line in the user's own code, for `agl show`."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    own = [frame for frame in frames if "site-packages" not in frame.filename and "agentlightning" not in frame.filename]
    if own and own[-1] is not frames[-1]:
        where = f" at {own[-1].filename}:{own[-1].lineno}{' (in ' + frames[-1].filename + ')'}"
    return f"{type(error).__name__}: {message_of(error)}{where}"


def message_of(error: BaseException) -> str:
    """The message of an exception, cut to `MESSAGE` characters. Its `__str__` may raise, too."""
    try:
        text = str(error)
    except BaseException as raised:
        return f"(no message: its __str__ raised {type(raised).__name__})"
    return text if len(text) <= MESSAGE else f"{text[:MESSAGE]}… ({len(text):,} characters)"
