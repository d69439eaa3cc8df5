"""Ends programs that were started for a rollout, with all their children; also when the process that started them was killed.

A program runs in a session of its own, so its children are found whatever they do with signals and process groups, unless they leave that
session. Run as a script this is the guard: it reads `+session` and `-session` lines from standard input, and kills the sessions that are
left when the input ends, which it does however the other process ends. It imports the standard library only, so that it starts in some
milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
PASSES = 10
"""A process may fork while its session is being killed; so many looks find all of it."""


def signal_session(session: int, number: int) -> bool:
    """Send a signal to every process of the session that process `session` began; whether there was one."""
    found = False
    with suppress(ProcessLookupError, PermissionError):  # macOS: not permitted where only the dead are left
        os.killpg(session, number)
        found = True
    for pid in _members(session):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
            found = True
    return found


def kill_session(session: int) -> None:
    """Kill every process of a session."""
    for _ in range(PASSES):
        if not signal_session(session, signal.SIGKILL):
            return


def _members(session: int) -> list[int]:
    """The living processes of a session, other process groups included; where the system tells (Linux)."""
    members: list[int] = []
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdecimal():
            with suppress(OSError, IndexError, ValueError):  # it ended meanwhile
                state, _, _, of, *_ = (entry / "stat").read_text("latin-1").rpartition(")")[2].split()
                if int(of) == session and state not in "ZX":
                    members.append(int(entry.name))
    return members


def main() -> None:
    """The guard."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its input
    sessions: set[int] = set()
    for line in sys.stdin:
        (sessions.add if line.startswith("+") else sessions.discard)(int(line[1:]))
    for session in sessions:
        kill_session(session)


if __name__ == "__main__":
    main()
