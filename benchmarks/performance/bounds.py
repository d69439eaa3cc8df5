"""Shared code of the scripts: interleaved runs, and a table of ratios with their bounds.

Ratios use the fastest runs, because other load on the machine only slows a run down. Medians are printed beside them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

console = Console() if sys.stdout.isatty() else Console(width=150)


def bar() -> Progress:
    """Show a progress bar that disappears at the end."""
    return Progress(SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True)


def in_turn(names: Iterable[str], repeat: int) -> Iterator[tuple[str, bool]]:
    """Yield each name `repeat` times and once more, in turn, and whether its run counts: the first round does not."""
    names = list(names)
    for number, name in enumerate(tracked(names * (repeat + 1))):
        yield name, number >= len(names)


def tracked(names: Sequence[str]) -> Iterator[str]:
    """Yield the names. Shows a progress bar in a terminal, else a line for each, so that a log tells how far a script is."""
    with bar() as progress:
        task = progress.add_task("", total=len(names))
        for number, name in enumerate(names, 1):
            if not console.is_terminal:
                console.print(f"{number} of {len(names)}: {name}")
            progress.update(task, description=name)
            yield name
            progress.advance(task)


def worthwhile_dtypes(path: str) -> list[str]:
    """Return float32, and bfloat16 if `dtype = "auto"` chooses it for a model on this machine. An old CPU is several times slower in it."""
    import torch

    from agentlightning.config.model_facts import model_facts
    from agentlightning_torch.number_type import number_type

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    faster = number_type("auto", device, model_facts(path).hidden or 0) == torch.bfloat16
    if not faster:
        console.print("bfloat16 is not measured, because it is not faster than float32 here. --dtypes measures it.")
    return ["float32", "bfloat16"] if faster else ["float32"]


def take_turns(runs: Mapping[str, Callable[[], Any]], repeat: int) -> dict[str, list[float]]:
    """Time each run `repeat` times, in turn. The first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for name, counts in in_turn(runs, repeat):
        started = time.thread_time()
        runs[name]()
        if counts:
            seconds[name].append(time.thread_time() - started)
    return seconds


@dataclass
class Report:
    """Rows of a table. A ratio outside its bound makes the script fail."""

    title: str
    columns: tuple[str, ...] = ("fastest", "median")
    """Column between the name and the ratio."""
    rows: list[list[str]] = field(default_factory=list[list[str]])
    missed: list[str] = field(default_factory=list[str])

    def add(self, name: str, *cells: str, ratio: float | None = None, most: float | None = None, least: float | None = None) -> None:
        """Add a row. `most` and `least` bound its ratio."""
        bounds = [f"at most {most:g}" if most is not None else "", f"at least {least:g}" if least is not None else ""]
        bound = " and ".join(filter(None, bounds))
        held = ratio is None or ((most is None or ratio <= most) and (least is None or ratio >= least))
        if not held:
            self.missed.append(f"{name}: {ratio:.2f}, {bound} is wanted")
        verdict = "" if not bound else "held" if held else "[red]missed"
        self.rows.append([name, *cells, "" if ratio is None else f"{ratio:.2f}", bound, verdict])

    def times(self, name: str, seconds: list[float], reference: list[float] | None = None, most: float | None = None) -> None:
        """Add a row of milliseconds, with the ratio to the reference."""
        ratio = None if reference is None else min(seconds) / min(reference)
        self.add(name, *(f"{1e3 * value:.2f} ms" for value in (min(seconds), statistics.median(seconds))), ratio=ratio, most=most)

    def show(self) -> list[str]:
        """Print the table and return the missed bounds."""
        table = Table(title=self.title, title_justify="left")
        for column in ("", *self.columns, "ratio", "bound", ""):
            table.add_column(column, justify="left" if column in ("", "bound") else "right")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        return self.missed


def finish(missed: list[str]) -> None:
    """Exit with status 1 and a message if a bound was missed."""
    if missed:
        raise SystemExit("bounds missed:\n  " + "\n  ".join(missed))
