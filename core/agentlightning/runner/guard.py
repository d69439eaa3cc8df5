"""Ends programs that were started for a rollout, with all their children; also when the process that started them was killed.

A program is known by a mark in its environment, which its children inherit, and by the session that it begins; so they are found whatever
they do with signals, process groups and sessions (without `/proc`, as on macOS: in its process group). Run as a script this is the guard:
it reads lines from standard input, `+mark` before a program starts, `=mark pid` when it has, `-mark` when all of it has ended, and kills
what is left when the input ends, which it does however the other process ends. It imports the standard library only, so that it starts in
some milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

MARK = "AGL_PROGRAM"
"""Name of the environment variable."""
PROC = Path("/proc")
PASSES = 10
"""A process may fork while its program is being killed; so many looks find all of it."""
STARTING = 1.0
"""Seconds in which a program that was about to start, when the other process ended, shows its mark."""


def signal_program(mark: str, leader: int | None, number: int) -> bool:
    """Send a signal to every process of a program, of which process `leader` was the first; whether there was one."""
    found = False
    if leader is not None:
        with suppress(ProcessLookupError, PermissionError):  # macOS: not permitted where only the dead are left
            os.killpg(leader, number)
            found = True
    for pid in _members(mark, leader):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
            found = True
    return found


def kill_program(mark: str, leader: int | None) -> None:
    """Kill every process of a program."""
    for _ in range(PASSES):
        if not signal_program(mark, leader, signal.SIGKILL):
            return


def _members(mark: str, leader: int | None) -> list[int]:
    """The living processes of a program; where the system tells (Linux)."""
    sign, members = f"{MARK}={mark}".encode(), list[int]()
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError, IndexError, ValueError):  # it ended meanwhile, or is another user's
                state, _, _, session, *_ = (entry / "stat").read_text("latin-1").rpartition(")")[2].split()
                if state not in "ZX" and (int(session) == leader or sign in (entry / "environ").read_bytes().split(b"\0")):
                    members.append(int(entry.name))
    return members


def main() -> None:
    """The guard."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its input
    programs: dict[str, int | None] = {}
    for line in sys.stdin:
        what, words = line[0], line[1:].split()
        if what == "-":
            programs.pop(words[0], None)
        else:
            programs[words[0]] = int(words[1]) if what == "=" else None
    until = time.monotonic() + STARTING
    while programs:
        for mark, leader in programs.items():
            kill_program(mark, leader)
        programs = {mark: leader for mark, leader in programs.items() if leader is None and time.monotonic() < until}
        time.sleep(0.05)


if __name__ == "__main__":
    main()
