"""Shared code of the measuring scripts: toy sizes, models, and figures that are written immediately."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DRY = bool(os.environ.get("AGL_GPU_DRY"))
OUT = Path(os.environ.get("AGL_GPU_OUT", "."))
FIGURES = Path("figures.jsonl")
PERFORMANCE = Path(__file__).resolve().parents[1] / "performance"


class Figures:
    """`figures.jsonl` of this step. A figure from an earlier call is not measured again."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        for line in FIGURES.read_text(encoding="utf-8").splitlines() if FIGURES.exists() else ():
            with contextlib.suppress(ValueError):
                self.lines.append(json.loads(line))
        if FIGURES.exists() and not FIGURES.read_bytes().endswith(b"\n"):
            with FIGURES.open("ab") as file:
                file.write(b"\n")

    def has(self, **point: Any) -> bool:
        """Return True if a point has been measured."""
        return any(point.items() <= line.items() for line in self.lines)

    def add(self, **figures: Any) -> None:
        """Write a line."""
        self.lines.append(figures)
        print(json.dumps(figures), flush=True)
        with FIGURES.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


@contextlib.contextmanager
def memory_errors(figures: Figures, **point: Any) -> Iterator[None]:
    """Record that a point ran out of memory, and continue."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        figures.add(**point, error="out of memory")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory() -> int | None:
    """Return torch's peak GPU memory in bytes since `reset_peak`, or None on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def reset_peak() -> None:
    """Reset the peak."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def use_performance_scripts() -> None:
    """Make the scripts of benchmarks/performance importable."""
    sys.path.append(str(PERFORMANCE))
