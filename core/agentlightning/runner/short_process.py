"""Processes that run to their end while the caller waits: an installation, a question to another Python."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from typing import Any


def run_with_progress(arguments: Sequence[str], on_line: Callable[[str], None]) -> str | None:
    """Run a command and pass on each line that it writes. Returns None, or the last lines of a command that failed."""
    lines: list[str] = []
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:  # noqa: S603 (the caller's)
        for line in filter(None, map(str.strip, process.stdout or ())):
            lines.append(line)
            on_line(line)
    if process.returncode == 0:
        return None
    errors = [line for line in lines if line.startswith("ERROR")]
    return " ".join(errors or lines[-3:]) or "it wrote nothing"


def ask_python(python: str, script: str, *, timeout: float = 120.0) -> Any:
    """Run a script in another Python and return the JSON on its last line. Raises `OSError` or `ValueError`, with the reason."""
    try:
        answer = subprocess.run(  # noqa: S603 (the user's Python)
            [python, "-c", script], capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"no answer within {timeout:g} s") from error
    if answer.returncode:
        raise ValueError((answer.stderr.strip().splitlines() or ["it wrote nothing"])[-1])
    return json.loads((answer.stdout.strip().splitlines() or ["it wrote nothing"])[-1])
