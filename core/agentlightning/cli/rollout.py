"""`agl rollout`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from agentlightning.cli.options import with_options
from agentlightning.cli.rendering import RenderingOptions
from agentlightning.cli.train import shown_path
from agentlightning.errors import ConfigError
from agentlightning.training.logged_progress import open_progress
from agentlightning.training.progress import duration

if TYPE_CHECKING:
    from agentlightning.config.schema import Config
    from agentlightning.training.score import Scored


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Which tasks the agent gets."""

    tasks: Annotated[
        str | None, typer.Option(metavar="FILE", help="Use these tasks instead of the config file's, such as a .jsonl or .csv file.")
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Run the first N tasks. Default: all.")] = None


@with_options
def rollout(
    *,
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG.toml]", help="The config file, as for `agl train`.")] = None,
    command: Annotated[
        str | None, typer.Option(metavar="LINE", help="Run this command for each task instead of a Python agent. Any language works.")
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="FROM",
            help="The command's reward: `stdout` (its last line; default), `exit_code`, `file`, `post`, or `module:function`.",
        ),
    ] = None,
    chosen: TaskOptions,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the most likely token, as greedy evaluations do.")] = False,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Use this model instead: any name that `agl serve` takes.")] = None,
    rendering: RenderingOptions,
) -> None:
    """Run the agent on its tasks and score it, without training.

    Use it to develop an agent, or to evaluate a checkpoint. Each eval task gets one rollout. Without eval tasks, each training task gets
    one.

    **Examples**

    `agl rollout config.toml --limit 4` tries the agent on four tasks.

    `agl rollout config.toml --model runs/20261122-133000-demo/checkpoints/step-00012 --greedy` evaluates a checkpoint.

    `agl rollout --command "python your_agent.py" --tasks tasks.jsonl --model smollm2-135m` needs no config file.

    **Commands**

    Each task runs in its own process. The process reads the task as JSON from standard input or `AGL_TASK`. It connects to the model with
    `OPENAI_BASE_URL` and `OPENAI_API_KEY` (or `ANTHROPIC_BASE_URL` and `ANTHROPIC_API_KEY`). `AGL_MODEL` is the model's name.

    Its last printed line is the reward: a number or `{"reward": number}`. With `--reward exit_code`, exit code 0 earns a reward of 1, and 1
    to 125 earn 0. Otherwise any exit code but 0 is a failed attempt. With `file`, it writes the reward to the file named by
    `AGL_REWARD_FILE`. With `post`, it POSTs the reward to `AGL_REWARD_URL`."""
    from agentlightning.training.score import rollout_config

    settings = settings_of(config, {"command": command, "reward": reward, "tasks": chosen.tasks, "model": model, **rendering.keys()})
    with open_progress() as progress:
        report = rollout_config(settings, limit=chosen.limit, greedy=greedy, progress=progress)
    print_scored(report, Console())
    if not report.scored:
        raise typer.Exit(1)


def settings_of(path: Path | None, changes: dict[str, Any]) -> Config:
    """Return the settings of a config file with the options on top, or of the options alone."""
    from agentlightning.config.models import model_path
    from agentlightning.config.schema import Config, load_config
    from agentlightning.settings import build

    options: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    if "model" in options:
        options["model"] = model_path(options["model"], Path.cwd())
    if path is None:
        missing = [f"--{key}" for key in ("command", "tasks", "model") if key not in options]
        if missing:
            raise ConfigError(f"`agl rollout` has no config file and no {', '.join(missing)}. Add them, or name a config file.")
        return build(Config, {"name": "command", "path": str(Path.cwd()), **options})
    if "command" in options:
        options |= {"agent": None, "path": str(Path.cwd())}
    if "tasks" in options:
        options["eval_tasks"] = None
    return dataclasses.replace(load_config(path), **options)


def print_scored(report: Scored, console: Console) -> None:
    """Print the rewards and failures of the rollouts."""
    mean = "none scored" if report.reward is None else f"mean reward {report.reward:.3f} over {report.scored} scored"
    console.print(f"{report.rollouts} rollouts in {duration(report.seconds)}, {mean}", highlight=False)
    for what, counts in (("attempts", report.statuses), ("model calls", report.requests)):
        console.print(f"{what}: {', '.join(f'{count} {name}' for name, count in counts.items()) or 'none'}", highlight=False)
    if report.scoring:
        counts = ", ".join(f"{count:.0f} {name.partition('.')[2]}" for name, count in report.scoring.items())
        console.print(f"judge: {counts}", highlight=False)
    if report.no_calls:
        console.print(Text(report.no_calls, style="yellow"), soft_wrap=True)
    if report.error:
        console.print(Text.assemble(("first failure: ", "bold red"), report.error), soft_wrap=True)
    console.print(f"see them:  agl show {shown_path(report.folder)}", soft_wrap=True, highlight=False)
