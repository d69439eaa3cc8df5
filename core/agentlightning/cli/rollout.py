"""`agl rollout`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from agentlightning.cli.train import shown_path
from agentlightning.progress import TrainingProgress, duration

if TYPE_CHECKING:
    from agentlightning.trial import Scored


def rollout(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The configuration, as for `agl train`.", show_default=False)],
    limit: Annotated[int | None, typer.Option(min=1, help="Tasks at most; without it: all of them.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another model than the configuration's: a name, a folder, a checkpoint.", show_default=False),
    ] = None,
) -> None:
    """Run the agent on its tasks and score it, without training: for development without a GPU, and for evaluation.

    Takes the held-out tasks where the configuration has some, one rollout each.

    **Examples**

    `agl rollout config.toml --limit 4` tries the agent on four tasks.

    `agl rollout config.toml --model runs/20261122-133000-demo/checkpoints/step-00012` scores what was trained.
    """
    from agentlightning.config import load_config
    from agentlightning.trial import rollout_config

    settings = load_config(config)
    if model is not None:
        settings = dataclasses.replace(settings, model=model)
    with TrainingProgress() as progress:
        report = rollout_config(settings, limit=limit, progress=progress)
    print_scored(report, Console())
    if not report.scored:
        raise typer.Exit(1)


def print_scored(report: Scored, console: Console) -> None:
    """What the rollouts came to."""
    mean = "none scored" if report.reward is None else f"mean reward {report.reward:.3f} over {report.scored} scored"
    console.print(f"{report.rollouts} rollouts in {duration(report.seconds)}, {mean}", highlight=False)
    for what, counts in (("attempts", report.statuses), ("model calls", report.requests)):
        console.print(f"{what}: {', '.join(f'{count} {name}' for name, count in counts.items()) or 'none'}", highlight=False)
    if report.error:
        console.print(Text.assemble(("first failure: ", "bold red"), report.error), soft_wrap=True)
    console.print(f"look at them:  agl show {shown_path(report.folder)}", soft_wrap=True, highlight=False)
