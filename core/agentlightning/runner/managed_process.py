"""A process with all its children: started, watched and ended here. It also ends when this process is killed.

Agents in other languages, vLLM servers and verl run in it. The guard (`agentlightning.runner.guard`) learns of each program before it
starts, so no moment exists in which a kill of this process leaves the program behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentlightning.runner import guard
from agentlightning.runner.process_output import Output
from agentlightning.types import new_id

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    """All of it; nothing is inherited."""
    folder: Path | None = None
    """Working directory; absent: this process's."""
    stdin: Path = Path(os.devnull)
    files: Sequence[int] = ()
    """Numbers of open files that the process inherits."""


class Guard:
    """The process that ends our programs if this one is killed. One guard watches any number of programs."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 (our own file)
            [sys.executable, "-I", "-S", guard.__file__], stdin=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def expect(self, mark: str) -> None:
        """Announce a program before it starts: this process may be killed while it does."""
        self._tell(f"+{mark}")

    def watch(self, mark: str, pid: int) -> None:
        """Watch a program that has started."""
        self._tell(f"={mark} {pid}")

    def forget(self, mark: str) -> None:
        """Stop watching a program that has ended."""
        self._tell(f"-{mark}")

    def remove(self, folder: Path) -> None:
        """Remove a folder with its content after this process has ended."""
        self._tell(str(folder.absolute()))

    def close(self) -> None:
        self._process.communicate()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # somebody killed the guard; `stop` still works
            self._process.stdin.write(f"{line}\n".encode())


class ManagedProcess:
    """A running program. Use it from any event loop; `stop` it in the end, also when it has ended by itself."""

    def __init__(self, command: Command, output: Output, watcher: Guard | None = None) -> None:
        """Start it. Without a `watcher` it gets a guard of its own. Raises `OSError`."""
        self.output = output
        self._mark = new_id()
        self._guard, self._owns_guard = watcher or Guard(), watcher is None
        self._guard.expect(self._mark)
        try:
            self._process = self._start(command)
        except OSError:
            self._leave_guard()
            raise
        self._guard.watch(self._mark, self._process.pid)
        self._ended: Future[int] = Future()
        threading.Thread(target=self._await_end, name=f"agl-process-{self.pid}", daemon=True).start()

    def _start(self, command: Command) -> subprocess.Popen[bytes]:
        stdout, stderr = self.output.open()
        try:
            with command.stdin.open("rb") as stdin:
                return subprocess.Popen(  # noqa: S603 (the caller's command)
                    command.arguments,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=command.folder,
                    env={**command.environment, guard.MARK: self._mark},
                    start_new_session=True,  # Ctrl-C in the terminal is for this process alone
                    pass_fds=command.files,
                )
        finally:
            for number in {stdout, stderr}:
                os.close(number)

    def _await_end(self) -> None:
        self._ended.set_result(self._process.wait())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.returncode

    @property
    def how(self) -> str:
        """How it ended, in words."""
        return "is running" if self.code is None else describe_exit(self.code)

    async def wait(self) -> int:
        """Wait for its end. Returns the exit code."""
        return await asyncio.shield(asyncio.wrap_future(self._ended))

    async def wait_until(self, ready: Callable[[], Awaitable[bool]], *, timeout: float, interval: float = 0.25) -> bool:
        """Wait until it is `ready`. False: it ended, or `timeout` seconds passed."""
        deadline = time.monotonic() + timeout
        while not await ready():
            if self.code is not None or time.monotonic() > deadline:
                return False
            await asyncio.sleep(interval)
        return True

    async def stop(self, *, grace: float = GRACE) -> None:
        """End it and all its children: ask, wait `grace` seconds, kill. A second cancellation kills at once."""
        try:
            if self.code is None:
                guard.signal_program(self._mark, self.pid, signal.SIGTERM)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.wait(), grace)
        finally:
            guard.kill_program(self._mark, self.pid)
            self._leave_guard()
            await self.wait()
            await self.output.finish()

    def _leave_guard(self) -> None:
        self._guard.forget(self._mark)
        if self._owns_guard:
            self._guard.close()


def describe_exit(code: int) -> str:
    """How a process with this exit code ended, in words."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
