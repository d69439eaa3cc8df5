"""`agl runs` lists runs with what they learned. `agl compare` compares two on the tasks that both were evaluated on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentlightning.cli.view import print_diagnosis, print_whole, records_console
from agentlightning.errors import ConfigError, RunError
from agentlightning.records.comparison import asked_tasks, base_side, paired_rewards, served_side, trained_side
from agentlightning.records.equal_tokens import equal_tokens
from agentlightning.training.choice import BOTH, Difference, Evaluation, differences
from agentlightning.training.eval_rollouts import KINDS
from agentlightning.training.recorded import run_config
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import RunState

SHOWN_TASKS = 20
"""Tasks that a comparison lists on each side."""


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The folder that holds the runs.")] = Path("runs"),
    limit: Annotated[int, typer.Option(min=0, help="Show the last N runs (0 = all).")] = 20,
) -> None:
    """List the runs of a folder, including those of benchmarks: model, progress, and eval rewards before and after training.

    **Examples**

    `agl runs` lists the last 20 runs in ./runs.

    `agl runs /data/runs --limit 0` lists all runs in another folder.
    """
    folders = RunFolder.below(folder)
    console = records_console()
    if not folders:
        console.print(Text(f"no run in {folder}"))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("run", no_wrap=True)
    for heading in ("model", "started"):
        table.add_column(heading, overflow="fold")
    for heading in ("steps", "minutes", "sampled", "greedy"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state")
    for run in folders[-limit:]:
        table.add_row(*_row(run, folder))
    print_whole(table, console)
    if limit and len(folders) > limit:
        console.print(f"… and {len(folders) - limit} earlier ones; --limit 0 shows all", style="dim")


def _row(run: RunFolder, folder: Path) -> list[Text]:
    name = Text(str(run.path.relative_to(folder.resolve())), style="cyan")
    config = run_config(run)
    try:
        state = run.read_state()
    except RunError:  # it has not begun, or another version wrote it
        return [name, Text(str(config.get("model", ""))), *[Text("")] * 5, _unread_state(run)]
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


def _unread_state(run: RunFolder) -> Text:
    """The state of a run whose state.json is absent or of another version."""
    if run.in_use:
        return Text("starting" if not run.begun else "running", style="green")
    reason = run.failed()
    if reason is not None:
        return Text(f"failed: {reason}", style="red")
    return Text("unknown" if run.begun else "stopped before its first step")


def _state(run: RunFolder, state: RunState) -> Text:
    if run.in_use:
        return Text("running", style="green")
    reason = run.failed()
    if reason is not None:
        return Text(f"failed: {reason}", style="red")
    if state.diagnosis is not None:
        return Text(f"{'finished' if state.finished else 'stopped'}, {state.diagnosis.cause}", style="yellow")
    return Text("finished" if state.finished else "stopped")


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or name, or `latest`: the newest that has begun to record.")],
    second: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Another one. Default: compare with the model before training.")
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--equal-tokens", help="Compare two runs after as many sampled tokens, instead of the weights that they serve.")
    ] = False,
) -> None:
    """Compare the weights of two runs on the eval tasks of both, task by task, with the 95% interval of the difference.

    The weights of a run are those that `agl serve RUN` serves: of the best evaluated step. If that is the model before training, one run
    is compared by its last evaluation.

    **Examples**

    `agl compare runs/a runs/b` shows what run b gains over run a. Two folders of `agl rollout` can be compared, too.

    `agl compare latest` shows what the last run gained over its model.

    `agl compare runs/a runs/b --equal-tokens` shows which run learned more from the tokens of the shorter one. Between two evaluations,
    rewards are interpolated.
    """
    console = records_console()
    run = _run(first)
    if tokens:
        if second is None:
            raise ConfigError("--equal-tokens compares two runs. Name another one.")
        count, (before, after) = asyncio.run(equal_tokens([run, _run(second)]))
        console.print(f"After {count:,} sampled tokens of training rollouts:")
    elif second is None:
        after = asyncio.run(trained_side(run))
        before = base_side(run)
    else:
        before, after = asyncio.run(served_side(run)), asyncio.run(served_side(_run(second)))
    changes = differences(before.evaluation, after.evaluation)
    if BOTH not in changes:
        raise RunError(f"{before.name} and {after.name} have no evaluated task in common. Compare runs with the same eval_tasks.")
    table = Table(
        "", before.name, after.name, "change", "95% interval", "won", "lost", "same", box=None, pad_edge=False, header_style="bold"
    )
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for kind in KINDS:
        if kind in changes:
            table.add_row(kind, *_cells(kind, before.evaluation, after.evaluation, changes[kind]))
    print_whole(table, console)
    names = asyncio.run(asked_tasks(after))
    for kind in KINDS:
        if kind in changes:
            _print_tasks(kind, before.evaluation, after.evaluation, names, console)
    print_diagnosis(after.run, console)


def _run(name: str) -> RunFolder:
    return RunFolder.latest() if name == "latest" else RunFolder.open(name)


def _cells(kind: str, before: Evaluation, after: Evaluation, change: Difference) -> list[str | Text]:
    """The means over the tasks that both scored, and what changed."""
    pairs = paired_rewards(kind, before, after)
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


def _print_tasks(kind: str, before: Evaluation, after: Evaluation, names: Mapping[str, str], console: Console) -> None:
    """Print the tasks that were won and lost, the largest changes first. `names`: what tasks ask, by id; others are shown by their id."""
    pairs = paired_rewards(kind, before, after)
    for word, sign in (("won", 1), ("lost", -1)):
        tasks = sorted(
            (task for task, (old, new) in pairs.items() if sign * (new - old) > 0), key=lambda task: -abs(pairs[task][1] - pairs[task][0])
        )
        if tasks:
            more = f", and {len(tasks) - SHOWN_TASKS} more" if len(tasks) > SHOWN_TASKS else ""
            console.print(
                Text(f"{kind} {word}: {', '.join(names.get(task, task) for task in tasks[:SHOWN_TASKS])}{more}", style="dim"),
                soft_wrap=True,
            )


def _mean(tasks: dict[str, float]) -> float:
    return sum(tasks.values()) / len(tasks)
