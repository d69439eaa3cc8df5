"""A process that is started here and watched: ended with all its children, also when this process is killed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from agentlightning.runner import guard
from agentlightning.types import new_id

GRACE = 5.0
"""Seconds that it has to end when it is asked to."""
SHOWN = 2500
"""Characters of its log that an error message shows."""


class Process:
    """A program whose outputs go to a log."""

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str], log: Path, *, files: Sequence[int] = ()) -> None:
        """Start it. `files` are numbers of open files that it inherits. Raises `OSError`."""
        self.log = log
        self._mark = new_id()
        self._guard = subprocess.Popen(  # noqa: S603 (our own file)
            [sys.executable, "-I", "-S", guard.__file__], stdin=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        self._tell(f"+{self._mark}")  # before it starts: this process may be killed while it does
        try:
            with log.open("ab") as out:
                self._process = subprocess.Popen(  # noqa: S603 (what the caller says)
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env={**variables, guard.MARK: self._mark},
                    start_new_session=True,  # the terminal's Ctrl-C is for this process
                    pass_fds=files,
                )
        except OSError:
            self._guard.communicate()
            raise
        self._tell(f"={self._mark} {self._process.pid}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def how(self) -> str:
        """How it ended, in words."""
        code = self.code
        if code is None:
            return "runs"
        return f"exited with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    def tail(self) -> str:
        """The end of its log."""
        with suppress(OSError):
            return self.log.read_bytes()[-SHOWN:].decode(errors="replace").strip()
        return ""

    async def stop(self) -> None:
        """End it with all its children."""
        if self._process.poll() is None:
            guard.signal_program(self._mark, self._process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, GRACE)
        await asyncio.to_thread(guard.kill_program, self._mark, self._process.pid)
        await asyncio.to_thread(self._process.wait)
        self._tell(f"-{self._mark}")
        await asyncio.to_thread(self._guard.communicate)

    def _tell(self, what: str) -> None:
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):  # somebody killed the guard
            self._guard.stdin.write(f"{what}\n".encode())
