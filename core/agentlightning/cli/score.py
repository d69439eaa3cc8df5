"""`agl score`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from agentlightning.cli.store import StoreArgument, progress_bar
from agentlightning.records.source import find_records
from agentlightning.registry.registry import load_object
from agentlightning.stores.common import open_store
from agentlightning.types import Mode

if TYPE_CHECKING:
    from agentlightning.training.rescore import Rescored


def score(
    store: StoreArgument,
    reward: Annotated[str, typer.Option(metavar="MODULE:FUNCTION", help="The reward function.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the new rewards. Default: the name of the present reward, so that the new one replaces it.")
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="Score only this mode.")] = None,
    step: Annotated[int | None, typer.Option(help="Score only this step, from 0.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what changes, and record nothing.")] = False,
) -> None:
    """Score stored rollouts again with another reward function, and show what changes.

    The function gets one recorded rollout. It has `task`, `answer` (the text of the last reply), `replies`, `rewards` by name, and
    `records`. It returns a number, or None to leave the rollout as it is. It may be async. Only succeeded rollouts are scored.

    Rewards are appended and never edited. Of one name the later reward counts, and `agl show` lists both. A run that has trained on a
    rollout does not train on it again. To train on the new rewards, see "Train on any store" in docs/production.md.

    **Example**

    `agl score latest --reward judge:short_answer --dry-run`, with this in judge.py:

    `def short_answer(rollout): return 1.0 if len(rollout.answer) < 40 else 0.0`
    """
    from agentlightning.training.rescore import rescore

    records, function = find_records(store), load_object(reward)

    async def run() -> Rescored:
        opened = open_store(records.address)
        try:
            return await rescore(
                opened, function, source=reward, name=name, weights=records.settings.get("reward_weights"), mode=mode, step=step,
                write=not dry_run, report=lambda count: progress.update(task, completed=count),
            )  # fmt: skip
        finally:
            await opened.close()

    with progress_bar() as progress:
        task = progress.add_task("scoring", total=None)
        rescored = asyncio.run(run())
    print_rescored(rescored, Console(), recorded=not dry_run)


def print_rescored(rescored: Rescored, console: Console, *, recorded: bool) -> None:
    """Print the rewards before and after, and the largest changes."""
    table = Table("", "before", "after", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("mean reward", *(f"{total / count:.3f}" if count else "none" for total, count in (rescored.before, rescored.after)))
    table.add_row("scored rollouts", *(f"{count:,.0f}" for _, count in (rescored.before, rescored.after)))
    console.print(table)
    others = f" {rescored.other:,} others did not succeed and keep their reward." if rescored.other else ""
    console.print(f"{rescored.changed:,} of {rescored.rollouts:,} rollouts change.{others}", highlight=False, soft_wrap=True)
    if rescored.largest:
        changes = Table("largest changes", "before", "after", box=None, pad_edge=False, header_style="bold")
        for change in rescored.largest:
            changes.add_row(change.rollout_id, *("none" if value is None else f"{value:.3f}" for value in (change.before, change.after)))
        console.print(changes)
    verb = "Recorded" if recorded else "Would record"
    console.print(f"{verb} {rescored.appended:,} rewards.", highlight=False)
