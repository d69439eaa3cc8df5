"""Where a managed process writes: a log file, or pipes of which only the end is kept."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

SHOWN = 2500
"""Characters of a log in an error message."""
DRAIN = 1.0
"""Seconds to wait for the last output of an ended process. A child that left its session may hold the pipe open."""


class Output(Protocol):
    """The output of one process."""

    def open(self) -> tuple[int, int]:
        """Open stdout and stderr. Returns their file numbers, which the caller closes."""
        ...

    async def finish(self) -> None:
        """Read the rest of an ended process's output, and close it."""
        ...

    def tail(self) -> str:
        """Return the last lines, for an error message."""
        ...


class LogFile:
    """Both streams, appended to a file that stays."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> tuple[int, int]:
        number = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        return number, number

    async def finish(self) -> None: ...

    def tail(self) -> str:
        with suppress(OSError):
            return self.path.read_bytes()[-SHOWN:].decode(errors="replace").strip()
        return ""


class Pipes:
    """Both streams, the last 64 KiB of each in memory. Use it in one event loop."""

    def __init__(self) -> None:
        self.stdout, self.stderr = PipeTail(), PipeTail()

    def open(self) -> tuple[int, int]:
        return self.stdout.open(), self.stderr.open()

    async def finish(self) -> None:
        await asyncio.gather(self.stdout.finish(), self.stderr.finish())

    def tail(self) -> str:
        streams = (("stderr", self.stderr.tail), ("stdout", self.stdout.tail))
        return "\n".join(f"{name} ends:\n{tail}" for name, tail in streams if tail) or "it wrote nothing"


class PipeTail:
    """The last `LIMIT` bytes from a pipe."""

    LIMIT = 64 * 1024
    SHOWN = 1500
    """Characters in an error message."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._reading = -1
        self._ended = asyncio.Event()

    def open(self) -> int:
        """Make the pipe and read from it. Returns the writing end, which the caller closes."""
        self._reading, writing = os.pipe()
        os.set_blocking(self._reading, False)
        asyncio.get_running_loop().add_reader(self._reading, self._read)
        return writing

    async def finish(self) -> None:
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), DRAIN)
        finally:
            self._close()

    def _read(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._reading, self.LIMIT)
            self._data += data
            del self._data[: -self.LIMIT]
            if not data:
                self._close()

    def _close(self) -> None:
        if not self._ended.is_set():
            asyncio.get_running_loop().remove_reader(self._reading)
            os.close(self._reading)
            self._ended.set()

    @property
    def text(self) -> str:
        return self._data.decode(errors="replace")

    @property
    def tail(self) -> str:
        text = self.text.strip()
        return text if len(text) <= self.SHOWN else "…" + text[-self.SHOWN :]
