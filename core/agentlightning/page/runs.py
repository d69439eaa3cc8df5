"""The list of runs: what each trained, how far it is, and what it learned. A run's files are read again only when they change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from agentlightning.config.store_address import shown_address
from agentlightning.errors import RunError
from agentlightning.page.library import Library
from agentlightning.training.eval_rollouts import KINDS
from agentlightning.training.metrics import NAME, read_metrics
from agentlightning.training.recorded import run_config
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import RunState
from agentlightning.training.step_history import has
from agentlightning.types import JSON

POINTS = 48
"""Rewards of the small curve."""
Stamp = tuple[int, ...]


class Summaries:
    """The summaries of runs, kept while their files stay the same."""

    def __init__(self) -> None:
        self._kept: dict[Path, tuple[Stamp, dict[str, JSON]]] = {}

    def all(self, library: Library) -> dict[str, JSON]:
        """Everything that the list shows."""
        runs = [self.of(name, run) for name, run in library.runs().items()]
        stores = [{"name": name, "address": shown_address(source.address)} for name, source in library.stores.items()]
        folder = None if library.folder is None or library.only else str(library.folder)
        return {"runs": runs, "stores": stores, "folder": folder, "start": library.start}

    def of(self, name: str, run: RunFolder) -> dict[str, JSON]:
        """The summary of one run."""
        stamp = stamp_of(run)
        kept = self._kept.get(run.path)
        if kept is None or kept[0] != stamp:
            kept = self._kept[run.path] = stamp, _summary(run)
        running = run.in_use
        state = "running" if running else kept[1]["state"]
        return {**kept[1], "name": name, "state": state, "running": running}


def stamp_of(run: RunFolder) -> Stamp:
    """Changes whenever a run has written something."""
    times: list[int] = []
    for path in (run.path / NAME, run.state, run.config, run.result, run.failure):
        try:
            stat = path.stat()
            times += [stat.st_mtime_ns, stat.st_size]
        except OSError:
            times += [0, 0]
    return tuple(times)


def read_state(run: RunFolder) -> RunState | None:
    """The state of a run; None: it has not begun, or another version wrote it."""
    try:
        return run.read_state() if run.state.exists() else None
    except RunError:
        return None


def _summary(run: RunFolder) -> dict[str, JSON]:
    config, state = run_config(run), read_state(run)
    try:
        rows = read_metrics(run.path)
    except RunError:
        rows = []
    parts = {name: _part(config.get(name)) for name in ("algorithm", "engine", "trainer")}
    return {
        "title": config.get("name") or run.name,
        "model": Path(str(config.get("model", ""))).name,
        "agent": config.get("agent") or config.get("command") or "",
        **parts,
        "steps": 0 if state is None else state.step,
        "planned": config.get("steps"),
        "started": state.started if state is not None and state.started else None,
        "seconds": None if state is None else state.seconds,
        "state": _state(run, state),
        "cause": None if state is None or state.diagnosis is None else state.diagnosis.cause,
        "best": None if state is None else state.best_step,
        "reward": last(rows, "reward"),
        "curve": thinned([float(row["reward"]) for row in rows if has(row, "reward")], POINTS),
        "eval": {kind: evaluated(rows, kind) for kind in KINDS if any(has(row, f"eval.{kind}") for row in rows)},
    }


def _state(run: RunFolder, state: RunState | None) -> str:
    reason = run.failed()
    if reason is not None:
        return f"failed: {reason}"
    if state is None:
        return "unknown" if run.begun else "stopped before its first step"
    return "finished" if state.finished else "stopped"


def _part(table: Any) -> str | None:
    return cast("Mapping[str, Any]", table).get("name") if isinstance(table, Mapping) else table


def evaluated(rows: Sequence[Mapping[str, Any]], kind: str) -> dict[str, JSON]:
    """The eval reward before training and the last one after it, with the interval of the change. What was not measured is absent."""
    name = f"eval.{kind}"
    values = [row for row in rows if has(row, name)]
    result: dict[str, JSON] = {}
    if values[0]["step"] == 0:
        result["before"] = values[0][name]
    if values[-1]["step"] > 0:
        result |= {"after": values[-1][name], "step": values[-1]["step"]}
        if has(values[-1], f"{name}.change_low", f"{name}.change_high"):
            result |= {end: values[-1][f"{name}.change_{end}"] for end in ("low", "high")}
            result["change"] = values[-1][f"{name}.change"]
    return result


def last(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The last value of a metric."""
    return next((float(row[name]) for row in reversed(rows) if has(row, name)), None)


def thinned(values: list[float], most: int) -> list[float]:
    """At most so many values, evenly spread, with the last one."""
    if len(values) <= most:
        return values
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]
