"""The report of a benchmark: `result.json` with every number, and a printed table. Missing measurements are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentlightning.cli.prompts import stages_table
from agentlightning.files import write_file
from agentlightning.training.eval_rollouts import KINDS, Kind
from agentlightning.training.interval import LEVEL, RESAMPLES, bootstrap
from agentlightning.training.progress import duration
from agentlightning.training.run import Run
from agentlightning_benchmarks.bench.phases import Order, Phases
from agentlightning_benchmarks.bench.reading import Measured, Scores, read_run

RESULT = "result.json"


def make_result(order: Order, done: Sequence[Phases], folder: Path) -> dict[str, Any]:
    """Return all measurements of a benchmark's runs."""
    runs = [_seed(phases, folder) for phases in done]
    measured = [run for run in runs if "tasks" in run]
    change: dict[str, Any] = {}
    for kind in KINDS:
        interval = bootstrap(differences(measured, kind)) if measured else None
        if interval is not None:
            change[kind] = {**asdict(interval), "rises": interval.rises, "level": LEVEL, "resamples": RESAMPLES}
    return {
        **{key: value for key, value in asdict(order).items() if value is not None},
        "finished": len(done) == len(order.seeds) and not any(phases.stopped for phases in done),
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        **({"change": change} if change else {}),
        "runs": runs,
    }


def write_result(result: Mapping[str, Any], folder: Path) -> None:
    write_file(folder / RESULT, msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def differences(runs: Sequence[Mapping[str, Any]], kind: Kind) -> NDArray[np.float64]:
    """Return a (seeds, tasks) array of reward after minus reward before. NaN marks a missing measurement."""
    ids = list(dict.fromkeys(task["id"] for run in runs for task in run["tasks"]))
    table = np.full((len(runs), len(ids)), np.nan)
    for row, run in enumerate(runs):
        for task in run["tasks"]:
            before, after = (_mean(task.get(kind, {}).get(when)) for when in ("before", "after"))
            if before is not None and after is not None:
                table[row, ids.index(task["id"])] = after - before
    return table


def _mean(rewards: Sequence[float | None] | None) -> float | None:
    """Return the mean over a task's rollouts, or None unless all are scored."""
    if not rewards or any(reward is None for reward in rewards):
        return None
    return float(np.mean([reward for reward in rewards if reward is not None]))


def _seed(phases: Phases, folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = {"seed": phases.seed, "seconds": 0.0}
    if phases.warm_start is not None:
        result["warm_start"] = _run(phases.warm_start, folder)
        result["seconds"] += result["warm_start"]["seconds"]
    if phases.run is not None:
        measured = read_run(phases.run.folder)
        own = _run(phases.run, folder, measured)
        result |= {**own, "seconds": result["seconds"] + own["seconds"], "seconds_of_training": own["seconds"]}
        result["tasks"] = _tasks(measured)
    return result


def _run(run: Run, folder: Path, measured: Measured | None = None) -> dict[str, Any]:
    """Return the measurements of one run or warm-up."""
    measured = measured or read_run(run.folder)
    sums = measured.account
    curves = {
        "train": measured.curve("reward"),
        **{f"test_{kind}": measured.curve(f"eval.{kind}") for kind in KINDS},
    }
    if sums.demonstrated:  # with other losses, the value measures nothing
        curves["loss"] = measured.curve("loss")
    kept = ("model", "steps", "finished", "seconds", "eval", "measured_after_step", "eval_reused", "best", "policy_step", "checkpoint")
    kept += ("prompts", "stages")
    return {
        "folder": run.folder.relative_to(folder).as_posix() if run.folder.is_relative_to(folder) else str(run.folder),
        **{key: run.result[key] for key in kept if run.result.get(key) not in (None, {})},
        "curve": {name: curve for name, curve in curves.items() if curve},
        "rollouts": dict(measured.rollouts),
        "requests": {"all": sums.requests, **sums.statuses},
        "tokens": {
            "all": sums.sampled,
            "demonstrated": sums.demonstrated,
            "trained": sums.trained,
            "left_out": dict(sums.left_out.most_common()),
        },
    }


def _tasks(measured: Measured) -> list[dict[str, Any]]:
    """Return the rewards of every test task, before and after."""
    tasks: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        for when, step in zip(("before", "after"), measured.steps(kind), strict=True):
            scores: Scores = measured.scores[kind].get(step, {}) if step is not None else {}
            for task, rewards in scores.items():
                tasks.setdefault(task, {"id": task}).setdefault(kind, {})[when] = rewards
    return [tasks[task] for task in sorted(tasks)]


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """Print a table with one row per seed, then the intervals."""
    only = result["eval_only"]
    title = f"{result['benchmark']}, preset {result['preset']}: mean reward on the test tasks"
    table = Table(title=title, title_justify="left")
    table.add_column("seed", justify="right")
    for kind in KINDS:
        for when in ("",) if only else (" before", " after"):
            table.add_column(f"{kind}{when}", justify="right")
    table.add_column("steps", justify="right")
    table.add_column("time", justify="right")
    for run in result["runs"]:
        measured = run.get("eval", {})
        cells = [measured.get(kind, {}).get(when) for kind in KINDS for when in (("before",) if only else ("before", "after"))]
        shown = ["not measured" if value is None else f"{value:.3f}" for value in cells]
        table.add_row(str(run["seed"]), *shown, str(run.get("steps", "")), duration(run["seconds"]))
    console.print(table)
    warm = next((run["warm_start"] for run in result["runs"] if "warm_start" in run), None)
    if warm is not None:
        shown = f"{warm['tokens']['trained']:,} demonstrated tokens in {warm['steps']} steps"
        console.print(f"The curve and numbers start after a supervised warm-up ({shown} for the first seed). The times include it.")
    for run in result["runs"]:
        if "stages" in run:
            console.print(stages_table(run["stages"]))
    for kind, change in result.get("change", {}).items():
        paired = f"{change['pairs']:,} pairs of test task and seed" + (f", {change['unpaired']} unpaired" if change["unpaired"] else "")
        verdict = ("rises", "green") if change["rises"] else ("falls", "red") if change["high"] < 0 else ("not significant", "yellow")
        console.print(
            Text.assemble(
                f"{kind}: change {change['mean']:+.3f}, 95% confidence interval {change['low']:+.3f} to {change['high']:+.3f} ({paired}): ",
                verdict,
            ),
            soft_wrap=True,
        )
