"""Ends programs with all their children, also when the process that started them was killed.

A program has a mark in its environment and begins a session; its children inherit both. So all of them are found, whatever they do with
signals, process groups and sessions. (Without `/proc`, as on macOS: its process group.)

Run as a script, this file is the guard. It reads lines from standard input: `+mark` before a program starts, `=mark pid` when it has
started, `-mark` when all of it has ended, `/path` a folder to remove. The input ends when the other process does, however that ends; then
the guard kills the rest and removes the folders.
It imports the standard library only, so it starts in milliseconds.
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
"""Searches for processes of a killed program: one may fork meanwhile."""
STARTING = 1.0
"""Seconds for a program to show its mark, if the other process ended while starting it."""


def signal_program(mark: str, leader: int | None, number: int) -> bool:
    """Send a signal to every process of a program with the first process `leader`. Returns whether it had any."""
    reached = False
    if leader is not None:
        with suppress(ProcessLookupError, PermissionError):  # macOS: not permitted where only the dead are left
            os.killpg(leader, number)
            reached = True
    for pid in _members(mark, leader):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
            reached = True
    return reached


def kill_program(mark: str, leader: int | None) -> None:
    """Kill every process of a program."""
    for _ in range(PASSES):
        if not signal_program(mark, leader, signal.SIGKILL):
            return


def _members(mark: str, leader: int | None) -> list[int]:
    """The living processes of a program (Linux alone)."""
    variable, members = f"{MARK}={mark}".encode(), list[int]()
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError, IndexError, ValueError):  # it ended meanwhile, or is another user's
                state, _, _, session, *_ = (entry / "stat").read_text("latin-1").rpartition(")")[2].split()
                if state not in "ZX" and (int(session) == leader or variable in (entry / "environ").read_bytes().split(b"\0")):
                    members.append(int(entry.name))
    return members


def main() -> None:
    """Run the guard."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its input
    programs: dict[str, int | None] = {}
    folders: list[str] = []
    for line in sys.stdin:
        what, words = line[0], line[1:].split()
        if what == "/":
            folders.append(line.rstrip("\n"))
        elif what == "-":
            programs.pop(words[0], None)
        else:
            programs[words[0]] = int(words[1]) if what == "=" else None
    until = time.monotonic() + STARTING
    while programs:
        for mark, leader in programs.items():
            kill_program(mark, leader)
        programs = {mark: leader for mark, leader in programs.items() if leader is None and time.monotonic() < until}
        time.sleep(0.05)
    import shutil  # only now, because it takes longer than the rest

    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
