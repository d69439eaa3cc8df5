"""Runs a step's processes within a time limit. None survive, however a call ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

MARK = "AGL_GPU_RUN_BY"
"""Environment variable of every process that a `run` starts: its output folder."""
GRACE = 20.0
"""Seconds for a step to stop after SIGINT."""
ALIVE = ".seconds"
"""File in the folder of a running step with its seconds so far, so that the time of a killed call counts too."""
TICK = 2.0


def mark_children(out: Path) -> None:
    """Mark every process started from now on as belonging to this folder."""
    os.environ[MARK] = str(out)


def end_leftovers(out: Path) -> None:
    """Stop the processes left by a killed `run`."""
    mark, own = f"{MARK}={out}".encode(), _ancestors()
    for path in Path("/proc").glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        with contextlib.suppress(OSError):
            if pid not in own and mark in path.read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                print(f"ended process {pid}, which an earlier call left running", flush=True)


def _ancestors() -> set[int]:
    """Return this process and its ancestors. They carry the mark if someone exported it."""
    ancestors, pid = set[int](), os.getpid()
    while pid and pid not in ancestors:
        ancestors.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            break
    return ancestors


def run_command(command: Sequence[str], folder: Path, variables: dict[str, str], seconds: float) -> int | None:
    """Run a command with its output in `log.txt`. Return its exit code, or None on timeout. No process survives."""
    nothing, began = subprocess.DEVNULL, time.monotonic()
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdin=nothing, stdout=log, stderr=log, start_new_session=True)
        try:
            try:
                return _wait(process, folder, began, seconds)
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
                os.killpg(process.pid, signal.SIGINT)  # a training run then writes its checkpoint
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=GRACE)
                if isinstance(stop, KeyboardInterrupt):
                    raise
                return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            (folder / ALIVE).unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], folder: Path, began: float, seconds: float) -> int:
    while True:
        spent = time.monotonic() - began
        (folder / ALIVE).write_text(f"{spent:.1f}")
        try:
            return process.wait(timeout=max(0.0, min(TICK, seconds - spent)))
        except subprocess.TimeoutExpired:
            if time.monotonic() - began >= seconds:
                raise


def killed_after(folder: Path) -> float | None:
    """Return the seconds a step had run when its call was killed, or None."""
    path = folder / ALIVE
    if not path.exists():
        return None
    with contextlib.suppress(ValueError):
        return float(path.read_text())
    return 0.0
