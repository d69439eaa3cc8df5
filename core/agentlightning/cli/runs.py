"""`agl runs` lists runs with what they learned. `agl compare` compares two on the tasks that both were evaluated on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentlightning.cli.show import find_records
from agentlightning.cli.view import print_diagnosis
from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import RunError
from agentlightning.stores.common import open_store
from agentlightning.training.choice import BOTH, Difference, Evaluation, differences
from agentlightning.training.eval_rollouts import KINDS, read_evaluation
from agentlightning.training.evaluation import evaluation_of
from agentlightning.training.recorded import run_config
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import RunState
from agentlightning.types import Trajectory

SHOWN_TASKS = 20
"""Tasks that a comparison lists on each side."""


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The folder of run folders.")] = Path("runs"),
    limit: Annotated[int, typer.Option(min=0, help="Show the last N runs (0 = all).")] = 20,
) -> None:
    """List the runs of a folder, and of its benchmarks: what each trained, how far it is, and its eval rewards before and after.

    **Examples**

    `agl runs` lists the last 20 runs in ./runs.

    `agl runs /data/runs --limit 0` lists all runs in another folder.
    """
    folders = sorted(
        [*RunFolder.all(folder), *(run for inner in folder.glob("*/") for run in RunFolder.all(inner))], key=lambda run: run.path.name
    )
    console = Console()
    if not folders:
        console.print(Text(f"no run in {folder}"))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("run", "model", "started"):
        table.add_column(heading, overflow="fold")
    for heading in ("steps", "minutes", "sampled", "greedy"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state")
    for run in folders[-limit:]:
        table.add_row(*_row(run, folder))
    console.print(table)
    if limit and len(folders) > limit:
        console.print(f"… and {len(folders) - limit} earlier ones; --limit 0 shows all", style="dim")


def _row(run: RunFolder, folder: Path) -> list[Text]:
    name = Text(str(run.path.relative_to(folder.resolve())), style="cyan")
    config = run_config(run)
    try:
        state = run.read_state()
    except RunError:  # it has not begun, or another version wrote it
        return [name, Text(str(config.get("model", ""))), *[Text("")] * 5, Text("unknown")]
    result = run.read_result() if run.result.exists() else {}
    rewards = cast("dict[str, dict[str, float]]", result.get("eval") or {})
    first = {} if state.first is None else {kind: _mean(tasks) for kind, tasks in state.first.rewards.items()}
    cells = list[str]()
    for kind in KINDS:
        before, after = rewards.get(kind, {}).get("before", first.get(kind)), rewards.get(kind, {}).get("after")
        cells.append(" → ".join(f"{value:.3f}" for value in (before, after) if value is not None))
    planned = config.get("steps")
    return [
        name,
        Text(Path(str(config.get("model", ""))).name),
        Text(datetime.fromtimestamp(state.started).strftime("%Y-%m-%d %H:%M") if state.started else ""),
        Text(f"{state.step}/{planned}" if planned else str(state.step)),
        Text(f"{state.seconds / 60:.0f}"),
        *map(Text, cells),
        _state(run, state),
    ]


def _state(run: RunFolder, state: RunState) -> Text:
    if run.in_use:
        return Text("running", style="green")
    if state.diagnosis is not None:
        return Text(f"{'finished' if state.finished else 'stopped'}, {state.diagnosis.cause}", style="yellow")
    return Text("finished" if state.finished else "stopped")


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or name, or `latest`.")],
    second: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Another one. Default: compare with the model before training.")
    ] = None,
) -> None:
    """Compare the weights of two runs on the eval tasks of both, task by task, with the 95% interval of the difference.

    The weights of a run are those that `agl serve RUN` serves: of the best evaluated step.

    **Examples**

    `agl compare runs/a runs/b` shows what run b gains over run a.

    `agl compare latest` shows what the last run gained over its model.
    """
    console = Console()
    one = _served(first)
    before, after = (_base(first), one) if second is None else (one, _served(second))
    changes = differences(before.evaluation, after.evaluation)
    if BOTH not in changes:
        raise RunError(f"{before.name} and {after.name} have no evaluated task in common. Compare runs with the same eval_tasks.")
    table = Table(
        "", before.name, after.name, "change", "95% interval", "won", "lost", "same", box=None, pad_edge=False, header_style="bold"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for kind in KINDS:
        if kind in changes:
            table.add_row(kind, *_cells(kind, before.evaluation, after.evaluation, changes[kind]))
    console.print(table)
    for kind in KINDS:
        if kind in changes:
            _print_tasks(kind, before.evaluation, after.evaluation, console)
    print_diagnosis(after.run, console)


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of a comparison."""

    run: RunFolder
    name: str
    evaluation: Evaluation


def _served(name: str) -> _Side:
    """The evaluation of the weights that a run serves."""
    run = RunFolder.latest() if name == "latest" else RunFolder.open(name)
    state = run.read_state()
    step = state.best_step if state.best_step is not None else state.evaluated.step if state.evaluated is not None else None
    if step is None:
        raise RunError(f"Run {run.name} was never evaluated. Set eval_tasks, and train it.")
    label = f"{run.name} step {step}"
    for evaluation in (state.first, state.strongest):
        if evaluation is not None and evaluation.step == step:
            return _Side(run, label, evaluation)
    return _Side(run, label, asyncio.run(_read(run, step)))


def _base(name: str) -> _Side:
    """The evaluation of a run's model before training."""
    run = RunFolder.latest() if name == "latest" else RunFolder.open(name)
    first = run.read_state().first
    if first is None:
        raise RunError(f"Run {run.name} did not evaluate its model before training. Name another run to compare it with.")
    return _Side(run, "before training", first)


async def _read(run: RunFolder, step: int) -> Evaluation:
    """The evaluation of a step, from the store of the run."""
    from agentlightning.rl.trajectory.build import trajectory

    source = find_records(str(run.path))

    def read(state: RolloutState, attempts: Sequence[AttemptRecords]) -> Trajectory:
        return trajectory(state, attempts, **source.settings)

    store = open_store(source.address)
    try:
        return evaluation_of(step, list((await read_evaluation(store, step, read)).values()))
    finally:
        await store.close()


def _cells(kind: str, before: Evaluation, after: Evaluation, change: Difference) -> list[str | Text]:
    """The means over the tasks that both scored, and what changed."""
    pairs = _pairs(kind, before, after)
    won, lost = (sum(sign * (new - old) > 0 for old, new in pairs.values()) for sign in (1, -1))
    interval = change.interval
    style = "green" if change.rises else "red" if change.falls else ""
    return [
        f"{sum(old for old, _ in pairs.values()) / len(pairs):.3f}",
        f"{sum(new for _, new in pairs.values()) / len(pairs):.3f}",
        Text(f"{interval.mean:+.3f}", style=style),
        Text(f"{interval.low:+.3f} to {interval.high:+.3f}", style=style),
        str(won),
        str(lost),
        str(len(pairs) - won - lost),
    ]


def _print_tasks(kind: str, before: Evaluation, after: Evaluation, console: Console) -> None:
    """Print the tasks that were won and lost, the largest changes first."""
    pairs = _pairs(kind, before, after)
    for word, sign in (("won", 1), ("lost", -1)):
        tasks = sorted(
            (task for task, (old, new) in pairs.items() if sign * (new - old) > 0), key=lambda task: -abs(pairs[task][1] - pairs[task][0])
        )
        if tasks:
            more = f", and {len(tasks) - SHOWN_TASKS} more" if len(tasks) > SHOWN_TASKS else ""
            console.print(Text(f"{kind} {word}: {', '.join(tasks[:SHOWN_TASKS])}{more}", style="dim"), soft_wrap=True)


def _pairs(kind: str, before: Evaluation, after: Evaluation) -> dict[str, tuple[float, float]]:
    """The rewards of each task that both scored."""
    old, new = before.rewards[kind], after.rewards[kind]
    return {task: (reward, new[task]) for task, reward in old.items() if task in new}


def _mean(tasks: dict[str, float]) -> float:
    return sum(tasks.values()) / len(tasks)
