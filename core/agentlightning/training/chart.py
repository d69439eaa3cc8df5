"""The reward curve of a run as a picture."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentlightning.files import write_file

log = logging.getLogger("agentlightning")
TRAIN, SAMPLED, GREEDY = "#3b6ea5", "#c8502d", "#5a8f3c"
"""Told apart by people who see no red or green as well: the lines also differ in marker and dash."""


def reward_chart(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Draw `rows` of `metrics.jsonl` into `path`. Without rewards, or without matplotlib, there is no picture."""
    train = _series(rows, "reward")
    sampled, greedy = _series(rows, "eval.sampled"), _series(rows, "eval.greedy")
    if not (train or sampled or greedy):
        return
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("There is no reward curve, because matplotlib is not installed. Run: pip install 'agentlightning[torch]'")
        return
    figure: Any = Figure(figsize=(8, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # drawn without a display, and without pyplot's global state
    axes: Any = figure.add_subplot()
    spread = dict(_series(rows, "reward_spread"))
    if train:
        steps, rewards = zip(*train, strict=True)
        if spread:
            low = [reward - spread.get(step, 0.0) for step, reward in train]
            high = [reward + spread.get(step, 0.0) for step, reward in train]
            axes.fill_between(steps, low, high, color=TRAIN, alpha=0.15, linewidth=0, label="spread over its tasks")
        axes.plot(steps, rewards, color=TRAIN, linewidth=1.6, marker=".", label="training tasks, sampled")
    for series, color, style, marker, label in (
        (sampled, SAMPLED, "-", "o", "eval tasks, sampled"),
        (greedy, GREEDY, "--", "s", "eval tasks, greedy"),
    ):
        if series:
            steps, rewards = zip(*series, strict=True)
            axes.plot(steps, rewards, color=color, linestyle=style, marker=marker, markersize=5, linewidth=2)
            axes.lines[-1].set_label(f"{label}: {rewards[0]:.2f} to {rewards[-1]:.2f}" if len(rewards) > 1 else label)
    axes.set(title=title, xlabel="training steps finished", ylabel="mean reward")
    rewards = [reward for series in (train, sampled, greedy) for _, reward in series]
    if min(rewards) >= 0 and max(rewards) <= 1:
        axes.set_ylim(-0.03, 1.05)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.06)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)  # beside the curves, whatever their course
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_file(path, buffer.getvalue())


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of the rows that have it, the last row of a step counting, in order of steps."""
    return sorted({int(row["step"]): float(row[name]) for row in rows if row.get(name) is not None and "step" in row}.items())
