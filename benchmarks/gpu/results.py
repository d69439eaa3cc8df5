"""The results file: one JSON object per line, append-only."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from pieces import PiecesError

RESULTS = "results.jsonl"
START = '{"step": "'
"""Keys of every line."""
AGAIN = "again"
"""Marks all earlier lines of a step as outdated."""
FINAL = ("ok", "failed", "timeout", "out_of_memory")
"""Possible statuses of a step. `skipped` and `interrupted` steps are tried again."""


class Results:
    """An append-only results file."""

    def __init__(self, path: Path, here: dict[str, Any]) -> None:
        self.path, self.here = path, here
        self.lines = read_results(path)
        if self.lines and self.lines[-1]["dry"] != here["dry"]:
            kind = "--dry" if self.lines[-1]["dry"] else "a GPU"
            raise PiecesError(f"{path} has results of {kind}. Use another --out, so that toy sizes and real ones stay apart.")
        if path.exists() and not path.read_bytes().endswith(b"\n"):  # A crash cut off the last line. The next one needs its own line.
            with path.open("ab") as file:
                file.write(b"\n")

    def final(self, step: str) -> str | None:
        """Return the final status of a step, or None if it is unfinished."""
        status = next((line["status"] for line in reversed(self.lines) if line["step"] == step and line["status"] != "skipped"), None)
        return status if status in FINAL else None

    def spent(self, step: str) -> float:
        """Return the seconds of interrupted calls since the step's last result."""
        total = 0.0
        for line in reversed([line for line in self.lines if line["step"] == step]):
            if line["status"] in (*FINAL, AGAIN):
                break
            total += line.get("seconds", 0.0)
        return total

    def skip(self, step: str, reason: str) -> None:
        """Record why a step was skipped, once."""
        last = next((line for line in reversed(self.lines) if line["step"] == step), None)
        if last is None or (last["status"], last.get("error")) != ("skipped", reason):
            self.add(step, "skipped", error=reason)

    def add(self, step: str, status: str, **more: Any) -> None:
        """Write a line and flush it to disk."""
        line = {"step": step, "status": status, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **self.here}
        line |= {key: value for key, value in more.items() if value not in (None, [])}
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a results file. A line cut off by a crash is dropped. Raises `PiecesError` for any other invalid line."""
    if not path.exists():
        return []
    try:
        raw = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise PiecesError(f"{path} is not text. Use a file that benchmarks/gpu/run wrote.") from error
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(raw, 1):
        # In a file joined from two, the next line may directly follow one that a crash cut off.
        last = text[max(text.rfind(START), 0) :]
        try:
            line = json.loads(last)
            if _is_result(line):
                lines.append(line)
                continue
        except ValueError:
            if not text.strip() or (text.startswith("{") and not text.endswith("}")):
                continue
        raise PiecesError(f"{path}, line {number}, is not a result. Use a file that benchmarks/gpu/run wrote.")
    return lines


def _is_result(line: Any) -> bool:
    """Return True if a line has the keys of every result."""
    if not isinstance(line, dict):
        return False
    kinds = {"step": str, "status": str, "dry": bool, "versions": dict}
    optional = {"error": str, "figures": list, "seconds": int | float, "gpus": list}
    return all(isinstance(line.get(key), kind) for key, kind in kinds.items()) and all(
        isinstance(line[key], kind) for key, kind in optional.items() if key in line
    )
