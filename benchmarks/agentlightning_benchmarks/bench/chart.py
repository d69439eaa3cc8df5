"""Draws a benchmark's train and test curves in two panels: thin lines for seeds, a thick line for their mean."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentlightning.files import write_file
from agentlightning.training.chart import GREEDY, SAMPLED, TRAIN

Curve = Sequence[Sequence[float]]
"""(step, reward) of each measured step."""


def mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """Return the mean over seeds, at steps that all seeds measured."""
    tables = [{point[0]: point[1] for point in curve} for curve in curves if curve]
    steps = sorted(tables[0]) if tables else []
    return [(step, float(np.mean([table[step] for table in tables]))) for step in steps if all(step in table for table in tables)]


def draw(result: Mapping[str, Any], path: Path) -> bool:
    """Draw the curves of a result. Return False if it has no curve."""
    curves: dict[str, list[Curve]] = {}
    for run in result["runs"]:
        for name, curve in run.get("curve", {}).items():
            curves.setdefault(name, []).append(curve)
    if not curves.keys() & {"train", "test_sampled", "test_greedy"}:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(10, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    _panel(left, [("train", TRAIN, "-", ".", "sampled")], curves, "training tasks")
    _panel(right, [("test_sampled", SAMPLED, "-", "o", "sampled"), ("test_greedy", GREEDY, "--", "s", "greedy")], curves, "test tasks")
    every = [value for name in ("train", "test_sampled", "test_greedy") for curve in curves.get(name, ()) for _, value in curve]
    if min(every) >= 0 and max(every) <= 1:
        left.set_ylim(-0.03, 1.05)
    left.set_ylabel("mean reward")
    seeds = len(result["runs"])
    warm = ", after a supervised warm-up" if any("warm_start" in run for run in result["runs"]) else ""
    figure.suptitle(f"{result['benchmark']}, preset {result['preset']}, {seeds} seed{'s' * (seeds > 1)}{warm}", fontsize=12)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_file(path, buffer.getvalue())
    return True


def _panel(axes: Any, lines: Sequence[tuple[str, str, str, str, str]], curves: Mapping[str, Sequence[Curve]], title: str) -> None:
    for name, color, dash, marker, label in lines:
        points = curves.get(name, ())
        for curve in points if len(points) > 1 else ():
            axes.plot(*zip(*curve, strict=True), color=color, linestyle=dash, linewidth=0.8, alpha=0.4)
        mean = mean_curve(points)
        if mean:
            change = f": {mean[0][1]:.2f} to {mean[-1][1]:.2f}" if len(mean) > 1 else f": {mean[0][1]:.2f}"
            axes.plot(*zip(*mean, strict=True), color=color, linestyle=dash, marker=marker, markersize=5, linewidth=2, label=label + change)
    axes.set(title=title, xlabel="training steps finished")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)  # below all curves
