"""`agl store`: moves records between stores and files, and deletes old ones."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from agentlightning.cli.import_traces import import_traces
from agentlightning.cli.store_server import serve
from agentlightning.config.store_address import store_file
from agentlightning.contracts.store import LightningStore, StoredRollout
from agentlightning.errors import ConfigError, LightningError
from agentlightning.records.source import find_records
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.stores import parquet, retention, transfer
from agentlightning.stores.common import ENDED, open_store
from agentlightning.types import Mode, RolloutStatus

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Serve, export, import, copy, and prune stores.")
app.command("serve")(serve)
app.command("import-traces")(import_traces)
STORE = "A run's folder or name, `latest` (the newest run that has begun to record), a store file (agl.db), or a store's address."
StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help=STORE)]
TargetArgument = Annotated[str, typer.Argument(metavar="TO", help="A store's address, or a store file. A missing file is created.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Skip the rollouts that an interrupted copy has written.")]
UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


@app.command("export")
def export_store(
    store: StoreArgument, folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder for the Parquet files.")]
) -> None:
    """Export all rollouts to Parquet files, for pandas, polars, or DuckDB.

    The folder gets one file per kind of record: `rollouts`, `attempts`, `calls`, `completions`, `spans`, `rewards`, and `policies`.
    docs/records.md lists the columns. The files hold everything, so `agl store import` can bring the rollouts back.

    **Example**

    `agl store export latest records` and then `duckdb -c "SELECT step, avg(reward) FROM 'records/rollouts.parquet' GROUP BY step"`
    """

    async def run(report: Callable[[int], None]) -> int:
        async with _source(store) as opened:
            return await parquet.export(opened, folder, reward=plain_reward, report=report)

    with progress_bar() as progress:
        task = progress.add_task("exporting", total=None)
        count = asyncio.run(run(lambda exported: progress.update(task, completed=exported)))
    _print(f"Exported {count:,} rollouts to {folder}.")


@app.command("import")
def import_store(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that `agl store export` wrote.")],
    to: TargetArgument,
    resume: ResumeOption = False,
) -> None:
    """Import the rollouts of an export into a store.

    A repeated import adds only what is missing.

    **Example**

    `agl store import records sqlite:copy.db`
    """
    source = parquet.ParquetSource(folder)

    async def run(report: Callable[[transfer.Copied], None]) -> transfer.Copied:
        async with _target(to) as target:
            return await transfer.copy(source, target, resume=resume, report=report)

    _copy(run)


@app.command("copy")
def copy_store(store: StoreArgument, to: TargetArgument, resume: ResumeOption = False) -> None:
    """Copy all rollouts and policies of a store into another store.

    Ids, order, attempts, records, and policies stay the same. A second copy adds later records, such as rewards. Stop the runners of
    one store first, or a rollout may continue in both.

    **Examples**

    `agl store copy latest sqlite:all.db` collects runs in one store.

    `agl store copy agl.db http://TOKEN@trainer:8000` copies to another machine.
    """

    async def run(report: Callable[[transfer.Copied], None]) -> transfer.Copied:
        async with _source(store) as source, _target(to) as target:
            return await transfer.copy(transfer.StoreSource(source), target, resume=resume, report=report)

    _copy(run)


@app.command()
def prune(
    store: StoreArgument,
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Delete rollouts that ended longer ago: 90m, 12h, 30d, or 8w.")],
    mode: Annotated[Mode | None, typer.Option(help="Delete only this mode.")] = None,
    status: Annotated[RolloutStatus | None, typer.Option(help="Delete only this status.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete. Without it, the command only shows what it would delete.")] = False,
) -> None:
    """Delete old rollouts with their records, and give the space back to the disk.

    Queued and running rollouts stay. So do rollouts whose group or step has queued or running rollouts. Deleting from a store file rewrites
    the file. This needs free space of the same size, and other writers wait.

    **Examples**

    `agl store prune agl.db --older-than 30d` shows what is older than 30 days.

    `agl store prune agl.db --older-than 30d --mode production --yes` deletes it.
    """
    if status not in (None, *ENDED):
        raise ConfigError(f"--status is {status!r}, and rollouts in progress stay. Use succeeded, failed, or cancelled.")
    seconds = age(older_than)
    file = store_file(find_records(store).address)
    size = _bytes(file)

    async def run(report: Callable[[int], None]) -> retention.Pruned:
        async with _source(store) as opened:
            chosen = ENDED if status is None else (status,)
            pruned = await retention.prune(opened, older_than=seconds, mode=mode, status=chosen, delete=yes, report=report)
            if pruned.deleted:
                await opened.compact()
            return pruned

    with progress_bar() as progress:
        task = progress.add_task("reading", total=None)
        pruned = asyncio.run(run(lambda count: progress.update(task, completed=count)))
    _print_pruned(pruned, deleted=yes)
    if yes and file is not None:
        _print(f"{file} took {size / 2**20:,.1f} MiB and takes {_bytes(file) / 2**20:,.1f} MiB now.")


def age(text: str) -> float:
    """Return the seconds of an age like `30d`. Raises `ConfigError` for other text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if match is None:
        raise ConfigError(f"--older-than is {text!r}, which is no age. Write a number and m, h, d, or w, as in 30d.")
    return float(match[1]) * UNITS[match[2]]


def plain_reward(stored: StoredRollout) -> float | None:
    """Return the reward of a rollout by default settings; None: it has none, or its rewards contradict each other."""
    try:
        return trajectory(*stored).reward
    except LightningError:
        return None


def _copy(run: Callable[[Callable[[transfer.Copied], None]], object]) -> None:
    """Run a copy with a progress bar, and print the result. Ctrl-C says how to continue."""
    copied = transfer.Copied()

    with progress_bar() as progress:
        announcing, filling = progress.add_task("announcing", total=None), progress.add_task("copying", total=None)

        def report(now: transfer.Copied) -> None:
            nonlocal copied
            copied = now
            progress.update(announcing, completed=now.announced, total=now.announced if now.filled else None)
            progress.update(filling, completed=now.filled, total=max(now.announced, now.filled))

        try:
            asyncio.run(run(report))  # pyright: ignore[reportArgumentType]  # a coroutine
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"Stopped after {copied.filled:,} rollouts. The same command with --resume continues.") from stop
    skipped = f", {copied.skipped:,} of them earlier" if copied.skipped else ""
    _print(f"Copied {copied.filled:,} rollouts{skipped}.")


def _print_pruned(pruned: retention.Pruned, *, deleted: bool) -> None:
    table = Table("mode", "status", "rollouts", box=None, pad_edge=False, header_style="bold")
    table.columns[-1].justify = "right"
    for (mode, status), count in sorted(pruned.expired.items()):
        table.add_row(mode, status, f"{count:,}")
    if pruned.expired:
        Console().print(table)
    count = pruned.expired.total()
    stays = f", and {pruned.in_progress:,} old ones of steps in progress stay" if pruned.in_progress else ""
    if deleted:
        _print(f"Deleted {pruned.deleted:,} rollouts. {pruned.kept:,} do not match{stays}.")
    else:
        advice = " Add --yes to delete them." if count else ""
        _print(f"Would delete {count:,} rollouts. {pruned.kept:,} do not match{stays}.{advice}")


def _bytes(file: Path | None) -> int:
    """The size of a store file and its log."""
    files = [] if file is None else [file, file.with_name(f"{file.name}-wal")]
    return sum(path.stat().st_size for path in files if path.is_file())


@contextmanager
def progress_bar() -> Generator[Progress]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rollouts"), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


def _print(text: str) -> None:
    Console().print(text, soft_wrap=True, highlight=False)


@asynccontextmanager
async def _source(store: str) -> AsyncGenerator[LightningStore]:
    """The store that an argument names. It exists."""
    async with _target(find_records(store).address) as opened:
        yield opened


@asynccontextmanager
async def _target(address: str) -> AsyncGenerator[LightningStore]:
    opened = open_store(address)
    try:
        yield opened
    finally:
        await opened.close()
