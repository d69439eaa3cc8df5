"""Where metrics go: `metrics.jsonl`, one line for each step, and never a lost line.

A line holds `step` (steps finished when it was written; 0: before training) and numbers. The names that other parts read:

- `reward`: mean reward of the step's training rollouts; `reward_spread`: standard deviation of the groups' mean rewards;
- `demonstrated_reward`: the same of rollouts whose calls were answered by demonstrations, so that it says nothing of the policy;
- `eval.sampled`, `eval.greedy`: mean reward on eval tasks, at the steps that measured it;
- `tokens_per_second`: sampled tokens in a second of rollouts; `trained_tokens`; `seconds`: of the whole step.

A number that was not measured is absent. NaN and infinity become null.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentlightning.errors import RunError
from agentlightning.registry.registry import registry
from agentlightning.training.run_folder import disk_errors, write_file
from agentlightning.types import JSON

NAME = "metrics.jsonl"


class JSONLines:
    """Appends metrics to `metrics.jsonl` in a run folder; each line is on the disk when `log` returns."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / NAME
        if self.path.exists():
            _, torn = _split(self.path)
            if torn:  # a line appended to half a line would lose both
                cut_metrics(self.path.parent, after=None)
        with disk_errors("write", self.path):
            self._file = self.path.open("ab")

    def log(self, metrics: Mapping[str, JSON]) -> None:
        """Add one line."""
        with disk_errors("write", self.path):
            self._file.write(msgspec.json.encode(metrics, enc_hook=_number) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Trackers:
    """Every tracker that a config names, and `metrics.jsonl`, which a run always has."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self._trackers: list[Any] = [registry().load("trackers", name)(folder) for name in dict.fromkeys(("jsonl", *names))]

    def log(self, metrics: Mapping[str, JSON]) -> None:
        """One step."""
        for tracker in self._trackers:
            tracker.log(metrics)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._trackers:
            tracker.close()


def read_metrics(folder: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The lines of `metrics.jsonl`, and a sentence about a last line that was torn by a crash (None: there is none).

    Raises `RunError` when another line is broken: that is damage, not a crash.
    """
    path = Path(folder) / NAME
    if not path.exists():
        return [], None
    lines, torn = _split(path)
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1)]
    note = f"{path}: the last line is incomplete ({len(torn)} bytes, cut off by a crash) and was left out" if torn else None
    return rows, note


def cut_metrics(folder: Path, *, after: int | None) -> int:
    """Move the lines of steps beyond `after`, and a torn last line, to `metrics.jsonl.bak`; returns how many lines moved.

    A resumed run makes those steps again; nothing is lost. None: only a torn line is moved.
    """
    path = Path(folder) / NAME
    if not path.exists():
        return 0
    lines, torn = _split(path)
    beyond = [after is not None and _row(path, number, line).get("step", 0) > after for number, line in enumerate(lines, 1)]
    stay = [line for line, gone in zip(lines, beyond, strict=True) if not gone]
    gone = [line for line, gone in zip(lines, beyond, strict=True) if gone] + ([torn] if torn else [])
    if gone:
        backup = path.with_name(NAME + ".bak")
        with disk_errors("write", backup), backup.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in gone))
            file.flush()
            os.fsync(file.fileno())
        write_file(path, b"".join(line + b"\n" for line in stay))
    return len(gone)


def _split(path: Path) -> tuple[list[bytes], bytes]:
    """Complete lines, and what stands behind the last line end."""
    with disk_errors("read", path):
        *lines, torn = path.read_bytes().split(b"\n")
    return lines, torn


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise RunError(f"{path}, line {number}, is damaged: {error}; remove that line to go on") from error


def _number(value: Any) -> Any:
    """numpy's numbers, which metrics are full of."""
    item = getattr(value, "item", None)
    if item is None:
        raise TypeError(f"metrics hold numbers and texts, not {type(value).__name__}")
    return item()
