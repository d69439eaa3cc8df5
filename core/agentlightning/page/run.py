"""One run: its curves, its diagnosis, the choice of its weights, and its settings. Curves are thinned, so a long run stays small."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentlightning.config.models import run_result
from agentlightning.errors import LightningError
from agentlightning.page.library import Library, Source
from agentlightning.page.prompts import search_of, stages_of
from agentlightning.page.runs import Summaries, read_state, stamp_of
from agentlightning.training.metrics import read_metrics
from agentlightning.training.recorded import run_config
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import RunState
from agentlightning.training.step_history import has, no_signal
from agentlightning.types import JSON

POINTS = 800
"""Steps of a curve, at most."""
LOOK = 0.5
"""Seconds between two looks at the files of a run."""
BEAT = 15
"""Seconds after which a silent stream sends a sign of life."""
NAMES = (
    "reward", "reward_spread", "reward_min", "reward_max", "eval.sampled", "eval.greedy", "entropy", "kl", "grad_norm", "loss",
    "mismatch_kl", "mismatch_abs", "mismatch_abs_max", "clip_fraction", "trained_fraction", "truncated_fraction", "tokens_per_second", "lr",
    "trained_tokens", "seconds", "version_gap_mean",
)  # fmt: skip
"""The metrics that have a curve."""
POLICY_NAMES = ("entropy", "kl", "grad_norm", "loss", "mismatch_kl", "mismatch_abs", "clip_fraction", "reward")
"""Those that each of several policies has as well, under its own name: `writer/entropy`."""
SECONDS = "seconds."


class Watching:
    """The live view of runs."""

    def __init__(self, library: Library, summaries: Summaries) -> None:
        self._library, self._summaries = library, summaries

    async def now(self, name: str) -> dict[str, JSON]:
        """Everything that the view of a run shows, except its settings."""
        run = self._library.run(name)
        summary = self._summaries.of(name, run)
        queue = await self._queue(name) if summary["running"] else None
        return {"run": summary, "queue": queue, **await asyncio.to_thread(_view, run, self._library)}

    async def events(self, name: str) -> AsyncGenerator[bytes]:
        """Server-sent events: the view after each change of the run, until its reader leaves or the server stops."""
        run, before, silent = self._library.run(name), None, 0.0
        while not self._library.closing:
            now = stamp_of(run), run.in_use, await self._queue(name) if run.in_use else None
            if now != before:
                yield b"data: " + msgspec.json.encode(await self.now(name)) + b"\n\n"
                before, silent = now, 0.0
            elif silent >= BEAT:
                yield b": still here\n\n"
                silent = 0.0
            await asyncio.sleep(LOOK)
            silent += LOOK

    async def _queue(self, name: str) -> dict[str, int] | None:
        """The rollouts that run and wait; None: the run has no store yet."""
        try:
            source: Source = await self._library.source(name)
            counts = await source.store.counts()
        except LightningError:
            return None
        return {"running": sum(counts.running.values()), "queued": sum(counts.queued.values())}


def _view(run: RunFolder, library: Library) -> dict[str, JSON]:
    rows, state, result = read_metrics(run.path), read_state(run), run_result(run.path)
    config = run_config(run)
    policies = list(config.get("policies", {}))
    return {
        "columns": columns(rows, policies),
        "policies": policies,
        "prompts": search_of(state),
        "stages": stages_of(result, library.name_of(Path(config["prompts"])) if isinstance(config.get("prompts"), str) else None),
        "time": times(rows),
        "diagnosis": _diagnosis(state),
        "choice": None if state is None or state.choice is None else {"step": state.choice.step, "reason": state.choice.reason},
        "reused": [] if state is None else [{"step": entry.step, "kind": entry.kind, "run": entry.run} for entry in state.reused],
    }


def columns(rows: Sequence[Mapping[str, Any]], policies: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The curves by name, those of several policies as `writer/entropy`. A step without a number has None.

    Steps with an evaluation stay when a long run is thinned.
    """
    rows = _thinned(rows)
    table: dict[str, list[Any]] = {"step": [row.get("step", 0) for row in rows]}
    phases = sorted({name for row in rows for name in row if name.startswith(SECONDS)})
    of_policies = [f"{policy}/{name}" for policy in policies for name in POLICY_NAMES]
    for name in (*NAMES, *phases, *of_policies):
        values = [row[name] if has(row, name) else None for row in rows]
        if any(value is not None for value in values):
            table[name] = values
    signal = [1 - no_signal(row) if has(row, "groups", "reward") else None for row in rows]
    if any(value is not None for value in signal):
        table["signal"] = signal
    return table


def times(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by phase over all steps, the longest first."""
    phases = {name for row in rows for name in row if name.startswith(SECONDS)}
    sums = {name.removeprefix(SECONDS): sum(float(row[name]) for row in rows if has(row, name)) for name in phases}
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _thinned(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    stride = max(1, -(-len(rows) // POINTS))
    last = len(rows) - 1
    return [
        row for place, row in enumerate(rows) if place % stride == 0 or place == last or has(row, "eval.sampled") or has(row, "eval.greedy")
    ]


def _diagnosis(state: RunState | None) -> dict[str, str] | None:
    if state is None or state.diagnosis is None:
        return None
    diagnosis = state.diagnosis
    return {"cause": diagnosis.cause, "evidence": diagnosis.evidence, "remedy": diagnosis.remedy}
