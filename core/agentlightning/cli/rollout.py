"""`agl rollout`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from agentlightning.cli.train import shown_path
from agentlightning.errors import ConfigError
from agentlightning.training.progress import TrainingProgress, duration

if TYPE_CHECKING:
    from agentlightning.config.schema import Config
    from agentlightning.training.score import Scored


def rollout(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.toml]", help="The configuration, as for `agl train`.", show_default=False)
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(metavar="LINE", help="A program to run for each task, in any language, instead of an agent.", show_default=False),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="FROM",
            help="Where the command's reward comes from: `stdout` (its last line, the default), `exit_code`, `file` or `post`.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="FILE", help="Other tasks than the configuration's: .jsonl or .json.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Tasks at most; without it: all of them.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another model than the configuration's: a name, a folder, a checkpoint.", show_default=False),
    ] = None,
) -> None:
    """Run the agent on its tasks and score it, without training: for development without a GPU, and for evaluation.

    Takes the eval tasks where the configuration has some, one rollout each.

    **Examples**

    `agl rollout config.toml --limit 4` tries the agent on four tasks.

    `agl rollout config.toml --model runs/20261122-133000-demo/checkpoints/step-00012` scores what was trained.

    `agl rollout --command "python their_agent.py" --tasks tasks.jsonl --model smollm2-135m` needs no configuration.

    **A command**

    One process for each task. It is given the task as JSON on its standard input and in `AGL_TASK`, and its model in `OPENAI_BASE_URL`,
    `OPENAI_API_KEY` (or `ANTHROPIC_BASE_URL`, `ANTHROPIC_API_KEY`) and `AGL_MODEL`. The last line that it prints is the reward, a number
    or `{"reward": number}`; with `--reward exit_code` exit code 0 is 1 and another is 0; with `file` it writes the file
    `AGL_REWARD_FILE`, and with `post` it posts the reward to `AGL_REWARD_URL`.
    """
    from agentlightning.training.score import rollout_config

    settings = settings_of(config, {"command": command, "reward": reward, "tasks": tasks, "model": model})
    with TrainingProgress() as progress:
        report = rollout_config(settings, limit=limit, progress=progress)
    print_scored(report, Console())
    if not report.scored:
        raise typer.Exit(1)


def settings_of(path: Path | None, given: dict[str, str | None]) -> Config:
    """A configuration file with the options put in; or the options alone."""
    from agentlightning.config.schema import Config, build, load_config

    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if path is None:
        missing = [f"--{key}" for key in ("command", "tasks", "model") if key not in options]
        if missing:
            raise ConfigError(f"`agl rollout` needs a configuration file; without one {', '.join(missing)} must be given as well")
        return build(Config, {"name": "command", "path": str(Path.cwd()), **options})
    if "command" in options:
        options |= {"agent": None, "path": str(Path.cwd())}
    if "tasks" in options:
        options["eval_tasks"] = None
    return dataclasses.replace(load_config(path), **options)


def print_scored(report: Scored, console: Console) -> None:
    """What the rollouts came to."""
    mean = "none scored" if report.reward is None else f"mean reward {report.reward:.3f} over {report.scored} scored"
    console.print(f"{report.rollouts} rollouts in {duration(report.seconds)}, {mean}", highlight=False)
    for what, counts in (("attempts", report.statuses), ("model calls", report.requests)):
        console.print(f"{what}: {', '.join(f'{count} {name}' for name, count in counts.items()) or 'none'}", highlight=False)
    if report.error:
        console.print(Text.assemble(("first failure: ", "bold red"), report.error), soft_wrap=True)
    console.print(f"look at them:  agl show {shown_path(report.folder)}", soft_wrap=True, highlight=False)
