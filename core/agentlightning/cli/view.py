"""Shared by the list of rollouts and the tree of one: the rollout, its source, and the totals."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from agentlightning.records.accounts import UNACCOUNTED, total
from agentlightning.records.shown import Shown
from agentlightning.training.no_calls import made_no_call
from agentlightning.training.recorded import kind_of_rollout
from agentlightning.training.run_folder import RunFolder

SYMBOLS = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    **dict.fromkeys([127, *range(128, 160), 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd"),
}
"""What stands for control characters, and for those that turn the direction of text."""
STYLES = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "lost": "yellow", "timed_out": "red"}


class VisibleControls(RenderHook):
    """Shows control characters of recorded text as symbols, because a terminal would obey them."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Visible(renderable) for renderable in renderables]


class _Visible:
    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            yield segment if segment.control else Segment(segment.text.translate(SYMBOLS), segment.style)


def records_console() -> Console:
    """The console for recorded text."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 200  # a pipe or a file has no width to fit
    console.push_render_hook(VisibleControls())
    return console


def print_whole(table: Table, console: Console) -> None:
    """Print a table without cutting a name: on a narrow terminal its lines wrap."""
    needed = console.measure(table, options=console.options.update(max_width=10_000)).minimum
    console.width = max(console.width, needed)
    console.print(table, soft_wrap=False)


def print_diagnosis(run: RunFolder | None, console: Console) -> None:
    """Print why a run does not learn, if it does not."""
    diagnosis = run.read_state().diagnosis if run is not None and run.state.exists() else None
    if diagnosis is not None:
        console.print(Text(diagnosis.text, style="yellow"), soft_wrap=True)


def print_reused(run: RunFolder | None, console: Console) -> None:
    """Print which run has the rollouts of the evaluations that this run reused."""
    if run is None or not run.state.exists():
        return
    for entry in run.read_state().reused:
        where = "" if entry.run == "." else f" of {(run.path / entry.run).resolve()}"
        text = f"The {entry.kind} evaluation of step {entry.step} reuses the rollouts of step {entry.run_step}{where}."
        console.print(text, soft_wrap=True, highlight=False)


def print_sums(rows: list[Shown], console: Console) -> None:
    """Every request and every token, accounted for."""
    sums = total(row.account for row in rows)
    console.print()
    for name in ("train", "sampled eval", "greedy eval", "eval", "production"):
        those = [row for row in rows if kind_of_rollout(row.state.rollout) == name]
        rewards = [row.trajectory.reward for row in those if row.trajectory and row.trajectory.reward is not None]
        mean = f"mean reward {sum(rewards) / len(rewards):.3f} over {len(rewards):,} scored" if rewards else "none scored"
        silent = sum(made_no_call(row.trajectory) for row in those if row.trajectory)
        without = f", {silent:,} without a model call" if silent else ""
        if those:
            console.print(f"{len(those):,} {name} rollout{'s' * (len(those) > 1)}, {mean}{without}", highlight=False)
    console.print(f"{sums.requests:,} requests = {_sum(sums.statuses)}", highlight=False, soft_wrap=True)
    if sums.contexts:
        contexts = dict(sums.contexts.most_common())
        console.print(f"{sums.contexts.total():,} prompts = {_sum(contexts)}", highlight=False, soft_wrap=True)
    if sums.broken_calls:
        text = f"{sums.broken_calls:,} replies have a tool call that cannot be read. `agl show RUN ROLLOUT` says why."
        console.print(text, style="yellow", highlight=False, soft_wrap=True)
    parts = {"trained": sums.trained, **dict(sums.left_out.most_common())} if sums.sampled else {}
    tokens = f"{sums.sampled - sums.demonstrated:,} sampled" + (f" and {sums.demonstrated:,} demonstrated" if sums.demonstrated else "")
    console.print(f"{tokens} tokens = {_sum(parts)}", highlight=False, soft_wrap=True)
    if sums.left_out[UNACCOUNTED]:
        console.print(f"{sums.left_out[UNACCOUNTED]:,} tokens are unaccounted for. Please report this as a bug.", style="bold red")
    problems = [(short(row.state.rollout.id), row.problem) for row in rows if row.problem]
    if problems:
        text = f"{len(problems)} rollouts have no valid trajectory. The first, {problems[0][0]}: {problems[0][1]}"
        console.print(Text(text, style="yellow"), soft_wrap=True)


def short(identifier: str) -> str:
    """The end of an id: its random part. (The beginning is a time, and much the same for all of a run.)"""
    return identifier[-8:]


def _sum(parts: Mapping[str, int]) -> str:
    return " + ".join(f"{count:,} {name}" for name, count in parts.items()) or "0"
