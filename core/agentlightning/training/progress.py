"""The progress of a run: a live picture on a terminal, one plain line for each step elsewhere.

The training loop calls the methods of `Progress`, from any thread; none of them raises or waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import RLock
from typing import Any, Self

import rich.progress
from rich.console import Console, RenderableType
from rich.table import Column, Table
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


class Progress:
    """What the training loop reports, and where. This base shows nothing."""

    def begin(self, steps: int, start: int = 0) -> None:
        """A run of `steps` steps begins, `start` of which are done."""

    def phase(self, name: str, part: float | None = None) -> None:
        """A phase begins or continues: `loading model`, `rollouts`, `training`, `evaluating`. `part`: 0 to 1; None: not known."""

    def rollouts(self, done: int, total: int, running: int, mean_reward: float | None = None, tokens: int | None = None) -> None:
        """The rollouts of this phase so far; `tokens`: sampled in this phase so far."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        """A step has ended, with the metrics of `metrics.jsonl`."""

    def message(self, text: str) -> None:
        """Print a text that stays on the screen."""

    def diagnosis(self, text: str | None, *, changed: bool) -> None:
        """Show in one line why the run does not learn; None: it does, or nobody can tell. `changed`: the cause is a new one."""

    def end(self) -> None:
        """The run has ended, well or not. May be called twice."""

    @property
    def shows_diagnosis(self) -> bool:
        """Whether the picture on the terminal, whose last state stays there, has a diagnosis."""
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class TrainingProgress(Progress):
    """Live on a terminal, plain lines otherwise. Writes to stderr, so that stdout stays for results."""

    ROWS = 6
    """Steps in the table."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._lock = RLock()
        self._board = _Board(self._console, self.ROWS)
        self._steps = self._done = 0
        self._began = self._phase_began = self._step_began = clock()
        self._step_times: list[float] = []
        self._phase = ""

    def begin(self, steps: int, start: int = 0) -> None:
        with self._lock:
            self._steps, self._done = steps, start
            self._began = self._step_began = self._clock()
            self._board.show(STEPS, self._step_text, total=steps, completed=start)
        if not self._console.is_terminal:
            self._console.print(f"{steps} steps" + (f", {start} of them done" if start else ""))

    def phase(self, name: str, part: float | None = None) -> None:
        with self._lock:
            if name != self._phase:
                if not self._console.is_terminal and not self._steps:
                    self._console.print(f"{name} …")  # before the first step nothing else is printed
                self._phase, self._phase_began = name, self._clock()
            elif part is None:
                return
            share = "" if part is None else f" · {part:.0%}"
            text = lambda: f"{name}, {duration(self._clock() - self._phase_began)}{share}"  # noqa: E731 (evaluated on every refresh)
            self._board.show(PHASE, text, total=None if part is None else 1.0, completed=part or 0.0)

    def rollouts(self, done: int, total: int, running: int, mean_reward: float | None = None, tokens: int | None = None) -> None:
        def text() -> str:
            parts = [self._phase, f"{done}/{total} done", f"{running} in flight"]
            if mean_reward is not None:
                parts.append(f"mean reward {mean_reward:.3f}")
            if tokens:
                parts.append(f"{tokens / max(1e-3, self._clock() - self._phase_began):,.0f} tokens/s")
            return " · ".join(parts)

        with self._lock:
            if self._phase:
                self._board.show(PHASE, text, total=max(1, total), completed=done)

    def step(self, metrics: Mapping[str, Any]) -> None:
        with self._lock:
            now = self._clock()
            number = int(metrics.get("step", self._done + 1))
            if number > self._done:  # the evaluation before training is step 0 and takes no step's time
                self._step_times.append((now - self._step_began) / (number - self._done))
                self._done = number
            self._step_began, self._phase = now, ""
            self._board.rows.append(metrics)
            self._board.hide(PHASE)
            if self._steps:
                self._board.show(STEPS, self._step_text, total=self._steps, completed=self._done)
            left = self.time_left()
        if not self._console.is_terminal:
            shown = [f"{heading} {format(metrics[key], form)}" for key, heading, form in COLUMNS if _is_number(metrics.get(key))]
            tail = f", {duration(left)} left" if left else ""
            self._console.print(f"step {number}/{self._steps}: " + ", ".join(shown) + tail, soft_wrap=True, highlight=False)

    def message(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def diagnosis(self, text: str | None, *, changed: bool) -> None:
        with self._lock:
            self._board.diagnosis = text
        if text is not None and changed and not self._console.is_terminal:
            self.message(text)

    @property
    def shows_diagnosis(self) -> bool:
        return not self._board.disable and self._board.diagnosis is not None

    def end(self) -> None:
        with self._lock:
            self._phase = ""
            self._board.hide(PHASE)
            if not self._board.disable:
                self._board.stop()

    def time_left(self) -> float | None:
        """Return the seconds left: the median of the last five steps, less the time of the present one. None: not known yet."""
        if not self._step_times or self._done >= self._steps:
            return None
        recent = sorted(self._step_times[-5:])
        step = recent[len(recent) // 2]
        return (self._steps - self._done) * step - min(step, self._clock() - self._step_began)

    def picture(self) -> RenderableType:
        """Return the picture that a terminal shows now."""
        return self._board.get_renderable()

    def _step_text(self) -> str:
        left = self.time_left()
        texts = [f"step {self._done}/{self._steps}", f"{duration(self._clock() - self._began)} so far"]
        return " · ".join([*texts, f"{duration(left)} left"] if left is not None else texts)


STEPS, PHASE = "steps", "phase"


class _Text(rich.progress.ProgressColumn):
    """The text of a bar, made anew on every refresh."""

    def render(self, task: rich.progress.Task) -> Text:
        return Text(task.fields["text"]())


class _Board(rich.progress.Progress):
    """The table of the last steps above the bars of the run and of its phase. Shown on a terminal only."""

    def __init__(self, console: Console, rows: int) -> None:
        self.rows: deque[Mapping[str, Any]] = deque(maxlen=rows)
        self.diagnosis: str | None = None
        """The line below the table."""
        self._bars: dict[str, rich.progress.TaskID] = {}
        bar = rich.progress.BarColumn(bar_width=30)
        super().__init__(bar, _Text(), console=console, refresh_per_second=4, disable=not console.is_terminal)

    def show(self, name: str, text: Callable[[], str], *, total: float | None, completed: float) -> None:
        """Add or change a bar; without a total it moves to and fro."""
        self.hide(name)
        self._bars[name] = self.add_task(name, total=total, text=text)
        self.update(self._bars[name], completed=completed)
        self.start()

    def hide(self, name: str) -> None:
        """Take a bar away."""
        if name in self._bars:
            self.remove_task(self._bars.pop(name))

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.rows:
            yield steps_table(list(self.rows))
        if self.diagnosis is not None:
            yield Text(self.diagnosis, style="yellow")
        yield from super().get_renderables()


def steps_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of steps, with a column for each metric that at least one step has."""
    columns = [column for column in COLUMNS if any(_is_number(row.get(column[0])) for row in rows)]
    headings = (Column(heading, justify="right") for heading in ("step", *(heading for _, heading, _ in columns)))
    table = Table(*headings, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        cells = [format(row[key], form) if _is_number(row.get(key)) else "" for key, _, form in columns]
        table.add_row(str(row.get("step", "")), *cells)
    return table


def before_after_table(result: Mapping[str, Any]) -> Table:
    """Return the table of `result.json`'s `eval`: sampled and greedy reward, before and after."""
    headings = (Column(heading, justify="right") for heading in ("before", "after", "change"))
    table = Table("", *headings, title="Mean reward on eval tasks", title_justify="left")
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
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value
