"""`agl score`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from agentlightning.cli.store import StoreArgument, progress_bar
from agentlightning.config.store_address import shown_address
from agentlightning.errors import ConfigError
from agentlightning.records.source import RecordsSource, find_records
from agentlightning.registry.registry import load_object
from agentlightning.stores.common import open_store
from agentlightning.types import Mode

if TYPE_CHECKING:
    from agentlightning.config.rewards import JudgeSettings
    from agentlightning.training.rescore import Rescored, Rescoring
    from agentlightning.training.rewards.recorded_rollout import RecordedRollout, RewardFunction


def score(
    store: StoreArgument,
    reward: Annotated[
        str, typer.Option(metavar="MODULE:FUNCTION|CONFIG.toml", help="The reward function, or a config file whose `reward` scores.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the new rewards. Default: the name of the current reward, which they then replace.")
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="Score only this mode.")] = None,
    step: Annotated[int | None, typer.Option(help="Score only this step. Steps count from 0.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Compare with these labels: rewards of this name, or `task.KEY` for a key of the task."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what changes, and record nothing.")] = False,
) -> None:
    """Score stored rollouts again with another reward function, and show what changes.

    The function gets one recorded rollout. It has `task`, `answer` (the text of the last reply), `replies`, `rewards` by name, and
    `records`. It returns a number, or None to leave the rollout as it is. It may be async. Only succeeded rollouts are scored, up to 64 at
    once. A config file with `[reward.judge]` scores with its judge (docs/judges.md); the file needs no other table.

    Rewards are appended and never edited. If two have the same name, the later one counts, and `agl show` lists both. A run that has
    trained on a rollout does not train on it again. To train on the new rewards, see "Train on any store" in docs/production.md.

    With `--labels`, it prints how well the new scores agree with the labels, with 95% intervals.

    **Examples**

    `agl score latest --reward config.toml --labels task.good --dry-run` compares a judge with the key `good` of each task.

    `agl score latest --reward my_reward:short_answer --dry-run`, with this in my_reward.py:

    `def short_answer(rollout): return 1.0 if len(rollout.answer) < 40 else 0.0`
    """
    from agentlightning.training.rescore import rescore

    records = find_records(store)

    def report(count: int) -> None:
        progress.update(task, completed=count)

    async def run() -> tuple[Rescored, RewardSource]:
        opened = open_store(records.address)
        try:
            async with open_source(reward, records, labels) as source:
                _check_labels(labels, name, source.own_name, recorded=not dry_run)
                how = _rescoring(source, records, name, labels)
                rescored = await rescore(opened, how, mode=mode, step=step, write=not dry_run, report=report)
                return rescored, source
        finally:
            await opened.close()

    with progress_bar() as progress:
        task = progress.add_task("scoring", total=None)
        rescored, source = asyncio.run(run())
    print_rescored(rescored, Console(), recorded=not dry_run)
    print_source(source, Console())
    if labels is not None:
        print_agreement(rescored, labels, Console())


def _rescoring(source: RewardSource, records: RecordsSource, name: str | None, labels: str | None) -> Rescoring:
    from agentlightning.training.rescore import Rescoring

    weights = records.settings.get("reward_weights")
    return Rescoring(function=source.function, source=source.source, name=name, own_name=source.own_name, weights=weights, labels=labels)


@dataclass(slots=True)
class RewardSource:
    """What scores."""

    function: RewardFunction
    source: str
    """Its name in the records."""
    own_name: str | None = None
    """Name of the rewards that it gives in a run; None: a function that names none."""
    unscored: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Id and reason of each rollout that the judge could not score."""
    counts: dict[str, float] = field(default_factory=dict[str, float])
    """Metrics of the judge."""


@asynccontextmanager
async def open_source(reward: str, records: RecordsSource, labels: str | None) -> AsyncGenerator[RewardSource]:
    """Open what `--reward` names: `module:function`, or a config file with a `reward`. A judge does not see the labels."""
    from agentlightning.config.rewards import PROGRAM_REWARDS, RewardTable, read_reward_setting

    file = Path(reward)
    if file.suffix != ".toml":
        yield RewardSource(load_object(reward), reward)
        return
    setting = read_reward_setting(file)
    if isinstance(setting, RewardTable):
        async with _open_judge(setting.judge, records, labels) as source:
            yield source
    elif setting in PROGRAM_REWARDS:
        raise ConfigError(f"{reward}: reward is {setting!r}, which a running command gives. Name a judge or module:function.")
    else:
        yield _function_source(file, setting)


def _function_source(file: Path, reference: str) -> RewardSource:
    from agentlightning.config.schema import import_from

    import_from(file.resolve().parent)
    return RewardSource(load_object(reference), reference, reference.rpartition(":")[2].rpartition(".")[2])


@asynccontextmanager
async def _open_judge(settings: JudgeSettings, records: RecordsSource, labels: str | None) -> AsyncGenerator[RewardSource]:
    from agentlightning.config.models import cache_folder
    from agentlightning.training.rewards.agreement import without_label
    from agentlightning.training.rewards.judge import Judge
    from agentlightning.training.rewards.judge_cache import FILE, JudgeCache

    if settings.relative:
        raise ConfigError("reward.judge.relative is true, but `agl score` scores rollouts one by one. Set it to false, or remove it.")
    address = hashlib.sha256(shown_address(records.address).encode()).hexdigest()[:16]
    file = records.run.path / FILE if records.run is not None else cache_folder() / "judge" / f"{address}.jsonl"
    judge = Judge(settings, JudgeCache(file))

    async def score(rollout: RecordedRollout) -> float | None:
        (judgement,) = await judge.score([rollout if labels is None else without_label(rollout, labels)])
        if judgement.value is None:
            source.unscored.append((rollout.id, judgement.reason))
        return judgement.value

    source = RewardSource(score, judge.source, judge.name)
    try:
        yield source
    finally:
        source.counts = judge.counts()
        await judge.close()


def print_source(source: RewardSource, console: Console) -> None:
    """Print the requests of a judge, and the rollouts that it could not score."""
    if source.counts:
        asked, cached = (source.counts.get(f"judge.{name}", 0.0) for name in ("asked", "cached"))
        console.print(f"The judge was asked {asked:,.0f} times. {cached:,.0f} scores were known.", highlight=False)
    if source.unscored:
        rollout_id, reason = source.unscored[0]
        text = f"{len(source.unscored):,} rollouts were not scored. The first one, {rollout_id}: {reason}"
        console.print(text, highlight=False, soft_wrap=True)


def _check_labels(labels: str | None, name: str | None, own_name: str | None, *, recorded: bool) -> None:
    """Raise `ConfigError` if the new rewards would replace the labels. `own_name`: of the rewards that the scorer gives in a run."""
    from agentlightning.rl.trajectory.rollout_reward import EMITTED, RETURN

    replaced = {name} if name is not None else {own_name, RETURN, EMITTED}  # without a name, the agent's own rewards as well
    if labels is not None and recorded and labels in replaced:
        raise ConfigError(f"The new rewards would replace the labels {labels!r}. Add --name NAME to keep both, or --dry-run.")


def print_agreement(rescored: Rescored, labels: str, console: Console) -> None:
    """Print how far the new scores agree with labels."""
    from agentlightning.training.rewards.agreement import agreement

    measured = agreement(rescored.labelled)
    missing = [
        f"{count:,} without a {what}" for count, what in ((measured.without_label, "label"), (measured.without_score, "score")) if count
    ]
    rest = f" ({', '.join(missing)})" if missing else ""
    console.print(
        f"agreement with {labels}: {measured.pairs:,} rollouts of {measured.tasks:,} tasks{rest}", highlight=False, soft_wrap=True
    )
    if rescored.labelled and labels not in rescored.label_names:
        named = ", ".join(sorted(rescored.label_names)) or "none"
        console.print(f"No rollout has the label {labels!r}. Labels here: {named}.", highlight=False, soft_wrap=True)
    table = Table("", "value", "95% interval", box=None, pad_edge=False, show_header=False)
    for name, estimate in measured.measures.items():
        if estimate is None:
            table.add_row(name, "undefined", "all scores or all labels are equal")
        elif estimate.low is None or estimate.high is None:
            table.add_row(name, f"{estimate.value:.3f}", "too few tasks for an interval")
        else:
            table.add_row(name, f"{estimate.value:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f}")
    if measured.measures:
        console.print(table)


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
