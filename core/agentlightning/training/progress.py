"""What a person sees while a run goes on: a live picture on a terminal, one plain line for each step elsewhere.

The loop calls the methods of `Progress`, from any thread; none of them raises or waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from threading import RLock
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("reward", "reward", ".3f"),
    ("eval.sampled", "eval sampled", ".3f"),
    ("eval.greedy", "eval greedy", ".3f"),
    ("trained_tokens", "trained tokens", ",.0f"),
    ("tokens_per_second", "tokens/s", ",.0f"),
    ("seconds", "seconds", ".1f"),
)
"""Metric, heading and format of the table of steps; a metric that no step has gets no column."""


class Progress(Protocol):
    """What the training loop calls."""

    def begin(self, steps: int, start: int = 0) -> None:
        """A run of `steps` steps begins, `start` of which are done."""
        ...

    def phase(self, name: str, part: float | None = None) -> None:
        """What goes on now: `loading model`, `rollouts`, `training`, `evaluating`; `part` of it is done, 0 to 1 (None: not known)."""
        ...

    def rollouts(self, done: int, total: int, running: int, mean_reward: float | None = None, tokens: int | None = None) -> None:
        """Where the rollouts of this phase stand; `tokens`: sampled in this phase so far."""
        ...

    def step(self, metrics: Mapping[str, Any]) -> None:
        """A step has ended, with the metrics of `metrics.jsonl`."""
        ...

    def message(self, text: str) -> None:
        """Something a person should know: it stays on the screen."""
        ...

    def end(self) -> None:
        """The run has ended, well or not. May be called twice."""
        ...


class Silent:
    """Shows nothing."""

    def begin(self, steps: int, start: int = 0) -> None: ...
    def phase(self, name: str, part: float | None = None) -> None: ...
    def rollouts(self, done: int, total: int, running: int, mean_reward: float | None = None, tokens: int | None = None) -> None: ...
    def step(self, metrics: Mapping[str, Any]) -> None: ...
    def message(self, text: str) -> None: ...
    def end(self) -> None: ...


class TrainingProgress:
    """Live on a terminal, plain lines otherwise. Writes to stderr, so that stdout stays for results."""

    ROWS = 6
    """Steps in the table."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._lock = RLock()
        self._live: Live | None = None
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=self.ROWS)
        self._steps = self._start = self._done = 0
        self._began = self._phase_began = self._step_began = clock()
        self._step_times: list[float] = []
        self._phase, self._part = "", None
        self._rollouts: tuple[int, int, int, float | None, int | None] | None = None

    @property
    def console(self) -> Console:
        """Where it writes; printing through it does not disturb the live picture."""
        return self._console

    def begin(self, steps: int, start: int = 0) -> None:
        with self._lock:
            self._steps, self._start, self._done = steps, start, start
            self._began = self._step_began = self._clock()
            self._open()
        if not self._console.is_terminal:
            self._console.print(f"{steps} steps" + (f", {start} of them done" if start else ""))

    def phase(self, name: str, part: float | None = None) -> None:
        with self._lock:
            if name != self._phase:
                if not self._console.is_terminal and not self._steps:
                    self._console.print(f"{name} …")  # before the first step there is nothing else to read
                self._phase, self._phase_began, self._rollouts = name, self._clock(), None
            self._part = part
            self._open()

    def rollouts(self, done: int, total: int, running: int, mean_reward: float | None = None, tokens: int | None = None) -> None:
        with self._lock:
            self._rollouts = (done, total, running, mean_reward, tokens)

    def step(self, metrics: Mapping[str, Any]) -> None:
        with self._lock:
            now = self._clock()
            number = int(metrics.get("step", self._done + 1))
            if number > self._done:  # the evaluation before training is step 0 and takes no step's time
                self._step_times.append((now - self._step_began) / (number - self._done))
                self._done = number
            self._step_began, self._phase = now, ""
            self._rows.append(metrics)
            left = self.time_left()
        if not self._console.is_terminal:
            shown = [f"{heading} {format(metrics[key], form)}" for key, heading, form in COLUMNS if _is_number(metrics.get(key))]
            tail = f", {duration(left)} left" if left else ""
            self._console.print(f"step {number}/{self._steps}: " + ", ".join(shown) + tail, soft_wrap=True, highlight=False)

    def message(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def end(self) -> None:
        with self._lock:
            live, self._live = self._live, None
            self._phase = ""
        if live is not None:
            live.stop()

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def time_left(self) -> float | None:
        """Seconds, from the median of the last five steps less what the present one took; None: not known yet."""
        if not self._step_times or self._done >= self._steps:
            return None
        recent = sorted(self._step_times[-5:])
        step = recent[len(recent) // 2]
        return (self._steps - self._done) * step - min(step, self._clock() - self._step_began)

    def _open(self) -> None:
        if self._live is None and self._console.is_terminal:
            self._live = Live(
                get_renderable=self.picture, console=self._console, refresh_per_second=4, transient=False, redirect_stderr=True
            )
            self._live.start()

    def picture(self) -> RenderableType:
        """What a terminal shows now."""
        with self._lock:
            parts: list[RenderableType] = []
            if self._rows:
                parts.append(steps_table(list(self._rows)))
            if self._steps:
                parts.append(self._step_line())
            if self._phase:
                parts.append(self._phase_line())
            return Group(*parts)

    def _step_line(self) -> RenderableType:
        left = self.time_left()
        texts = [f"step {self._done}/{self._steps}", f"{duration(self._clock() - self._began)} so far"]
        if left is not None:
            texts.append(f"{duration(left)} left")
        return _line(ProgressBar(total=max(1, self._steps), completed=self._done, width=30), " · ".join(texts))

    def _phase_line(self) -> RenderableType:
        texts = [f"{self._phase}, {duration(self._clock() - self._phase_began)}"]
        bar: RenderableType = Spinner("dots")
        if self._rollouts is not None:
            done, total, running, mean, tokens = self._rollouts
            bar = ProgressBar(total=max(1, total), completed=done, width=30)
            texts = [self._phase, f"{done}/{total} done", f"{running} under way"]
            if mean is not None:
                texts.append(f"mean reward {mean:.3f}")
            if tokens:
                texts.append(f"{tokens / max(1e-3, self._clock() - self._phase_began):,.0f} tokens/s")
        elif self._part is not None:
            bar = ProgressBar(total=1.0, completed=self._part, width=30)
            texts.append(f"{self._part:.0%}")
        return _line(bar, " · ".join(texts))


def make_progress() -> TrainingProgress:
    """The progress for a person at this process's stderr."""
    return TrainingProgress()


def steps_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of steps; columns for what at least one of them measured."""
    columns = [column for column in COLUMNS if any(_is_number(row.get(column[0])) for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step", justify="right")
    for _, heading, _ in columns:
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [format(row[key], form) if _is_number(row.get(key)) else "" for key, _, form in columns]
        table.add_row(str(row.get("step", "")), *cells)
    return table


def before_after_table(result: Mapping[str, Any]) -> Table:
    """The table of `result.json`'s `eval`: sampled and greedy reward, before and after."""
    table = Table(title="Mean reward on eval tasks", title_justify="left")
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    eval_metrics: Mapping[str, Any] = result.get("eval") or {}
    for kind in ("sampled", "greedy"):
        measured: Mapping[str, Any] = eval_metrics.get(kind) or {}
        before: Any = measured.get("before")
        after: Any = measured.get("after")
        change = Text("")
        if _is_number(before) and _is_number(after):
            better = float(after) - float(before)
            change = Text(f"{better:+.3f}", style="green" if better > 0 else "red" if better < 0 else "")
        table.add_row(kind, *(f"{value:.3f}" if _is_number(value) else "not measured" for value in (before, after)), change)
    return table


def duration(seconds: float | None) -> str:
    """`42 s`, `3:07 min`, `2:05 h`."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def _line(bar: RenderableType, text: str) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(bar, Text(text))
    return grid


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value
