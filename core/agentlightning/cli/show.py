"""`agl show`: the rollouts of a run, or of a store."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from agentlightning.cli.prompts import print_prompts
from agentlightning.cli.view import (
    STYLES,
    print_diagnosis,
    print_reused,
    print_sums,
    records_console,
    short,
)
from agentlightning.config.store_address import shown_address
from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import ConfigError, NotFound, StoreError
from agentlightning.records.shown import Shown, as_shown, with_step
from agentlightning.records.source import RecordsSource, find_records
from agentlightning.stores.common import open_store
from agentlightning.training.recorded import (
    find_rollout,
    finished_step,
    kind_of_rollout,
    rollout_states,
    task_text,
)
from agentlightning.types import Mode, RolloutStatus

TASK_LIMIT = 200
"""Characters of a task that are laid out in its row."""


def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="[RUN]",
            help="A run's folder or name, `latest` (the newest run that has begun to record), a store file (agl.db), or a store's address.",
        ),
    ] = "latest",
    rollout: Annotated[
        str | None, typer.Argument(metavar="[ROLLOUT]", help="Show one rollout: its id, or the start or end of its id.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Show only this step, as numbered in metrics.jsonl.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="Show only this mode.")] = None,
    status: Annotated[RolloutStatus | None, typer.Option(help="Show only this status.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Show the last N rows (0 = all). Totals always cover everything.")] = 40,
    tokens: Annotated[bool, typer.Option("--tokens", help="With ROLLOUT: show every token with its id and log-probability.")] = False,
) -> None:
    """List a run's rollouts with a tally of trained and excluded tokens, or show one rollout as a tree.

    **Examples**

    `agl show` lists the last run.

    `agl show latest --step 3 --mode train` lists the training rollouts of step 3.

    `agl show latest 5f0c9a1e` shows one rollout: agents, messages, replies, tools, rewards, advantages.

    `agl show 5f0c9a1e` does the same.

    `agl show latest 5f0c9a1e --tokens` adds every token with its log-probability.

    `agl show agl.db --status failed` lists the failed rollouts in a store recorded with `agl.rollout(task)`.
    """
    if rollout is None and _is_id(run):
        run, rollout = "latest", run
    source = find_records(run)
    console = records_console()
    if rollout is not None:
        from agentlightning.cli.tree import print_rollout

        print_rollout(asyncio.run(_one(source, rollout)), source, console, tokens=tokens)
        return
    if tokens:
        raise ConfigError("--tokens needs one rollout. Name it: `agl show RUN ROLLOUT --tokens`.")
    rows = asyncio.run(_all(source, step, mode, status))
    print_rollouts(rows, source, console, limit=limit)
    print_prompts(source.run, console)
    print_reused(source.run, console)
    print_diagnosis(source.run, console)


def _is_id(name: str) -> bool:
    """Whether the only argument is a rollout's id, or the end that the list shows, and no run or file."""
    return re.fullmatch("[0-9a-f]{8,32}", name) is not None and not Path(name).exists() and not (Path("runs") / name).exists()


async def _one(source: RecordsSource, name: str) -> Shown:
    store = open_store(source.address)
    try:
        with suppress(NotFound):
            return _shown(source, *await store.read(name))
        replayed = await _replayed(source, name)
        if len(replayed) > 1:
            raise ConfigError(f"{name!r} fits {len(replayed)} rollouts of the replay {source.production}. Give more of the id.")
        return replayed[0] if replayed else _shown(source, *await store.read(await find_rollout(store, name)))
    finally:
        await store.close()


async def _replayed(source: RecordsSource, name: str = "") -> list[Shown]:
    """Return the replayed rollouts of a run, with the steps that trained them; only ids that end with `name`."""
    if source.production is None or source.run is None:
        return []
    from agentlightning.training.production.opening import open_filled

    rows = list[Shown]()
    store = open_filled(source.production)
    try:
        for rollout_id, step in source.run.steps_of().items():
            if rollout_id.endswith(name):
                state, attempts = await store.read(rollout_id)
                rows.append(_shown(source, with_step(state, step), attempts))
    finally:
        await store.close()
    return rows


async def _all(source: RecordsSource, step: int | None, mode: Mode | None, status: RolloutStatus | None) -> list[Shown]:
    """Return the rollouts that fit, the replayed ones first."""

    def fits(state: RolloutState) -> bool:
        rollout = state.rollout
        return step in (None, finished_step(rollout)) and mode in (None, rollout.mode) and status in (None, state.status)

    store, console = open_store(source.address), Console(stderr=True)
    rows = list[Shown]()
    try:
        rows += [row for row in await _replayed(source) if fits(row.state)]
    except StoreError as error:
        console.print(Text(f"the replayed rollouts are not shown: {error}", style="yellow"), soft_wrap=True)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            job = bar.add_task("reading rollouts", total=None)
            async for state in rollout_states(store, mode=mode, status=[status] if status else None):
                if fits(state):
                    rows.append(_shown(source, *await store.read(state.rollout.id)))
                bar.advance(job)
    finally:
        await store.close()
    return rows


def _shown(source: RecordsSource, state: RolloutState, attempts: tuple[AttemptRecords, ...]) -> Shown:
    return as_shown(source, state, attempts, source.learned.get(state.rollout.id))


def print_rollouts(rows: list[Shown], source: RecordsSource, console: Console, *, limit: int) -> None:
    """Print the table of the last rows, and the totals of all."""
    if not rows:
        console.print(Text(f"no rollout in {source.run.name if source.run else shown_address(source.address)} matches"))
        return
    shown = rows[-limit:] if limit else rows
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("rollout", "step", "mode", "task", "index", "status", "reward", "calls", "tokens", "trained", "seconds"):
        left = heading in ("rollout", "mode", "task", "status")
        least = {"rollout": 8, "task": 8, "mode": 5, "status": 9}.get(heading, len(heading))  # on a narrow screen the task gives way
        table.add_column(
            heading, justify="left" if left else "right", no_wrap=True, min_width=least, max_width=60 if heading == "task" else None
        )
    for row in shown:
        rollout, number = row.state.rollout, finished_step(row.state.rollout)
        reward = row.trajectory.reward if row.trajectory else None
        table.add_row(
            Text(short(rollout.id), style="cyan"),
            "" if number is None else str(number),
            kind_of_rollout(rollout),
            Text(task_text(rollout.task)[:TASK_LIMIT]),
            str(rollout.index),
            Text(row.state.status, style=STYLES.get(row.state.status, "")),
            "–" if reward is None else f"{reward:.3f}",
            str(row.account.requests),
            str(row.account.sampled),
            str(row.account.trained),
            "" if row.seconds is None else f"{row.seconds:.1f}",
        )
    console.print(table)
    if len(shown) < len(rows):
        console.print(f"… and {len(rows) - len(shown)} earlier ones; --limit 0 shows all", style="dim")
    print_sums(rows, console)
