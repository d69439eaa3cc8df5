"""The file of results: one JSON object a line, only ever added to."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from pieces import PiecesError

RESULTS = "results.jsonl"
START = '{"step": "'
"""Of every line."""
AGAIN = "again"
"""A mark: what stands before it counts no more."""
FINAL = ("ok", "failed", "timeout", "out_of_memory")
"""What a step can end with; `skipped` and `interrupted` steps are tried again."""


class Results:
    """The file of results: lines are only ever added."""

    def __init__(self, path: Path, here: dict[str, Any]) -> None:
        self.path, self.here = path, here
        self.lines = read_results(path)
        if self.lines and self.lines[-1]["dry"] != here["dry"]:
            kind = "--dry" if self.lines[-1]["dry"] else "a GPU"
            raise PiecesError(f"{path} has results of {kind}. Use another --out, so that toy sizes and real ones stay apart.")
        if path.exists() and not path.read_bytes().endswith(b"\n"):  # a line that a crash cut off; the next one needs a line of its own
            with path.open("ab") as file:
                file.write(b"\n")

    def final(self, step: str) -> str | None:
        """What a step ended with; None: it has still to be done."""
        status = next((line["status"] for line in reversed(self.lines) if line["step"] == step and line["status"] != "skipped"), None)
        return status if status in FINAL else None

    def spent(self, step: str) -> float:
        """Seconds of the calls that were interrupted in this step since its last result."""
        total = 0.0
        for line in reversed([line for line in self.lines if line["step"] == step]):
            if line["status"] in (*FINAL, AGAIN):
                break
            total += line.get("seconds", 0.0)
        return total

    def skip(self, step: str, reason: str) -> None:
        """Note why a step was not done, once."""
        last = next((line for line in reversed(self.lines) if line["step"] == step), None)
        if last is None or (last["status"], last.get("error")) != ("skipped", reason):
            self.add(step, "skipped", error=reason)

    def add(self, step: str, status: str, **more: Any) -> None:
        """Write a line, and have it on disk before anything else happens."""
        line = {"step": step, "status": status, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **self.here}
        line |= {key: value for key, value in more.items() if value not in (None, [])}
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results. A line that a crash cut off is left out; anything else that is no result raises `PiecesError`."""
    if not path.exists():
        return []
    try:
        raw = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise PiecesError(f"{path} is not text. Use a file that benchmarks/gpu/run wrote.") from error
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(raw, 1):
        # Behind a line that a crash cut off stands the next one where two files were joined.
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
    """Whether a line has what every result has."""
    if not isinstance(line, dict):
        return False
    kinds = {"step": str, "status": str, "dry": bool, "versions": dict}
    optional = {"error": str, "figures": list, "seconds": int | float, "gpus": list}
    return all(isinstance(line.get(key), kind) for key, kind in kinds.items()) and all(
        isinstance(line[key], kind) for key, kind in optional.items() if key in line
    )
