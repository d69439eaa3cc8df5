"""`agl show`: what happened, from a run's store."""

from __future__ import annotations

import asyncio
import enum
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec.structs import replace
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from agentlightning.cli.accounts import account, finished_step
from agentlightning.cli.view import STYLES, Shown, ShownMode, Source, print_sums, short
from agentlightning.contracts.store import AttemptRecords, LightningStore, RolloutState
from agentlightning.errors import ConfigError, LightningError, NotFound, StoreError
from agentlightning.registry.registry import registry
from agentlightning.training.run_folder import RunFolder


class ShownStatus(enum.StrEnum):
    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"


def show(
    run: Annotated[
        str,
        typer.Argument(metavar="[RUN]", help="A run's folder or name, `latest`, a store file (agl.db), or a store's address."),
    ] = "latest",
    rollout: Annotated[
        str | None, typer.Argument(metavar="[ROLLOUT]", help="One rollout: its id, or the end of it as listed.", show_default=False)
    ] = None,
    step: Annotated[int | None, typer.Option(help="Only this step, as metrics.jsonl counts it.", show_default=False)] = None,
    mode: Annotated[ShownMode | None, typer.Option(help="Only this mode.", show_default=False)] = None,
    status: Annotated[ShownStatus | None, typer.Option(help="Only this status.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=0, help="Rows at most, the last ones; 0: all. The sums are always over all.")] = 40,
    tokens: Annotated[bool, typer.Option("--tokens", help="With ROLLOUT: every token with its id and log-probability.")] = False,
) -> None:
    """Show a run's rollouts and what became of every sampled token; or one rollout as a tree of what happened in it.

    **Examples**

    `agl show` lists the last run.

    `agl show latest --step 3 --mode train` lists the training rollouts of step 3.

    `agl show latest 5f0c9a1e` shows one rollout: agents, model calls, tools, rewards, advantages.

    `agl show latest 5f0c9a1e --tokens` adds every token with its log-probability.

    `agl show agl.db --status failed` reads a store that `agl.rollout(task)` recorded into.
    """
    source = find_source(run)
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 200  # a pipe or a file has no width to fit
    if rollout is not None:
        from agentlightning.cli.tree import print_rollout

        print_rollout(asyncio.run(_one(source, rollout)), source, console, tokens=tokens)
        return
    if tokens:
        raise ConfigError("--tokens shows the tokens of one rollout; name it: `agl show RUN ROLLOUT --tokens`")
    rows = asyncio.run(_all(source, step, mode, status))
    print_rollouts(rows, source, console, limit=limit)


def find_source(name: str) -> Source:
    """The store that an argument names: a run, a file, or an address."""
    if "://" in name or name.partition(":")[0] in registry().names("stores"):
        return Source(name)
    if name == "latest" and not RunFolder.all("runs"):
        recorded = os.environ.get("AGL_STORE") or ("agl.db" if Path("agl.db").is_file() else None)
        if recorded:
            return find_source(recorded)
    if Path(name).is_file():
        return Source(f"sqlite:{Path(name).resolve()}")
    if name.endswith(".db"):
        raise StoreError(f"there is no store file {name!r}; name a run (`latest`), or a file that `agl.rollout(task)` recorded into")
    run = RunFolder.latest() if name == "latest" else RunFolder.open(name)
    config = _config(run)
    if not run.store.is_file():
        raise StoreError(f"run {run.name} has no store.db: nothing was recorded in it yet")
    observed, notes = _step_rewards(config)
    settings = {"agents": config.get("agents"), "reward_weights": config.get("reward_weights"), "step_rewards": observed}
    production = config.get("replay", {}).get("store")
    return Source(run.store_address, run, run.read_batches(), settings, config.get("model"), production, notes)


def _config(run: RunFolder) -> dict[str, Any]:
    """The run's configuration as it stands in the file: whatever is wrong with it now must not hide what was recorded."""
    try:
        return tomllib.loads(run.config.read_text())
    except (OSError, ValueError):
        return {}


def _step_rewards(config: Mapping[str, Any]) -> tuple[Sequence[Any], tuple[str, ...]]:
    """What steps earn in the run, for `trajectory`; nothing, and a note, where that cannot be told any more."""
    if not config.get("step_rewards"):
        return (), ()
    from agentlightning.config.schema import import_from
    from agentlightning.config.tables import build_step_rewards

    try:
        import_from(Path(config.get("path", ".")))
        return build_step_rewards(config["step_rewards"]), ()
    except Exception as error:  # importing somebody's module may raise anything
        return (), (f"step_rewards of the run are not shown: {error}",)


async def _one(source: Source, name: str) -> Shown:
    store = _open(source)
    try:
        try:
            state, attempts = await store.read(name)
        except NotFound:
            found = await _found(source, name)
            if len(found) > 1:
                raise NotFound(
                    f"{name!r} fits {len(found)} rollouts that the run found in {source.production}; give more of the id"
                ) from None
            if found:
                return found[0]
            state, attempts = await store.read(await _find(store, name))
        return _shown(source, state, attempts)
    finally:
        await store.close()


async def _found(source: Source, name: str = "") -> list[Shown]:
    """The training rollouts that the run found elsewhere, as rollouts of the steps that took them; those whose id ends so."""
    if source.production is None or source.run is None:
        return []
    from agentlightning.training.production import open_filled

    steps = {rollout_id: step for rollout_id, step in source.run.steps_of().items() if rollout_id.endswith(name)}
    rows = list[Shown]()
    store = open_filled(source.production)
    try:
        for rollout_id, step in steps.items():
            state, attempts = await store.read(rollout_id)
            rows.append(_shown(source, replace(state, rollout=replace(state.rollout, step=step)), attempts))
    finally:
        await store.close()
    return rows


async def _found_or_said(source: Source, console: Console) -> list[Shown]:
    try:
        return await _found(source)
    except StoreError as error:
        console.print(Text(f"what the run found elsewhere is not shown: {error}", style="yellow"), soft_wrap=True)
        return []


async def _find(store: LightningStore, name: str) -> str:
    """The one rollout whose id ends (or begins) with a text."""
    after, found = 0, list[str]()
    while True:
        states, after = await store.list(after=after, limit=1000)
        found += [s.rollout.id for s in states if s.rollout.id.endswith(name) or s.rollout.id.startswith(name)]
        if not states:
            break
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFound(f"{name!r} fits {len(found)} rollouts; give more of the id: {', '.join(found[:4])} ...")
    raise NotFound(f"there is no rollout {name!r} in this store; `agl show RUN` lists them, with the end of their ids")


async def _all(source: Source, step: int | None, mode: ShownMode | None, status: ShownStatus | None) -> list[Shown]:
    store = _open(source)
    rows, console = list[Shown](), Console(stderr=True)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            job = bar.add_task("reading rollouts", total=None)
            after = 0
            while True:
                states, after = await store.list(
                    after=after, limit=200, mode=mode.value if mode else None, status=[status.value] if status else None
                )
                if not states:
                    return [*(row for row in await _found_or_said(source, console) if _fits(row.state, step, mode, status)), *rows]
                for state in states:
                    if step is None or finished_step(state.rollout) == step:
                        rows.append(_shown(source, *await store.read(state.rollout.id)))
                    bar.advance(job)
    finally:
        await store.close()


def _fits(state: RolloutState, step: int | None, mode: ShownMode | None, status: ShownStatus | None) -> bool:
    rollout = state.rollout
    return step in (None, finished_step(rollout)) and mode in (None, rollout.mode) and status in (None, state.status)


def _open(source: Source) -> LightningStore:
    from agentlightning.stores.common import open_store

    return open_store(source.address)


def _shown(source: Source, state: RolloutState, attempts: tuple[AttemptRecords, ...]) -> Shown:
    from agentlightning.rl.trajectory.build import trajectory

    made, problem = None, None
    if state.winner is not None:
        try:
            made = trajectory(state, attempts, **source.settings)
        except LightningError as error:
            problem = str(error)
    learned = source.learned.get(state.rollout.id)
    return Shown(state, attempts, made, problem, learned, account(state, attempts, made, learned))


def print_rollouts(rows: list[Shown], source: Source, console: Console, *, limit: int) -> None:
    """The table, and the sums over all rows."""
    if not rows:
        console.print(Text(f"no rollout in {source.run.name if source.run else source.address} fits"))
        return
    shown = rows[-limit:] if limit else rows
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("rollout", "step", "mode", "task", "index", "status", "reward", "calls", "tokens", "trained", "seconds"):
        left = heading in ("rollout", "mode", "task", "status")
        least = {"rollout": 8, "task": 4, "mode": 5, "status": 9}.get(heading, len(heading))  # on a narrow screen the task gives way
        table.add_column(
            heading, justify="left" if left else "right", no_wrap=True, min_width=least, max_width=40 if heading == "task" else None
        )
    for row in shown:
        rollout, number = row.state.rollout, finished_step(row.state.rollout)
        reward = row.trajectory.reward if row.trajectory else None
        table.add_row(
            Text(short(rollout.id), style="cyan"),
            "" if number is None else str(number),
            rollout.mode,
            Text(rollout.task.id),
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
