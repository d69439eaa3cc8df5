"""`agl train`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from agentlightning.cli.prompts import print_prompts
from agentlightning.cli.serve import check_log_token
from agentlightning.cli.view import print_diagnosis
from agentlightning.errors import ConfigError, RunError
from agentlightning.training.logged_progress import open_progress
from agentlightning.training.progress import before_after_table, duration
from agentlightning.training.run_folder import RunFolder

if TYPE_CHECKING:
    from agentlightning.config.schema import Config
    from agentlightning.training.dry_run import DryRun
    from agentlightning.training.run import Run


def train(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG.toml]", help="The config file.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Resume a run: its folder or name, or `latest`: the newest that has begun to record.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Train this model instead of the config's.")] = None,
    lr: Annotated[float | None, typer.Option(help="Use this learning rate instead of the config's.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run a few groups and one step, then estimate signal, memory, time, and disk.")
    ] = False,
) -> None:
    """Train an agent from a config file.

    A run writes `runs/<time>-<name>/`: metrics, the reward curve, every rollout, and checkpoints that load with transformers.
    Ctrl-C or `kill` stops cleanly. `--resume` continues from the last checkpoint.

    **Examples**

    `agl train config.toml --dry-run` checks the settings with at most one step. It estimates the share of groups with signal, and the
    memory, time, and disk of the run. It suggests group size, tasks per step, and temperature.

    `agl train config.toml` trains.

    `agl train --resume latest` continues the last run with its own settings.

    `agl train runs/X/config.toml --model runs/X/checkpoints/step-00010 --lr 1e-6` starts a new run from a checkpoint.

    `agl show latest` lists its rollouts.

    **Config files**

    Five settings are enough: `agent = "my_agent:solve"`, `tasks = "train.jsonl"`, `eval_tasks = "val.jsonl"`, `model = "smollm2-135m"`,
    and `steps = 10`. The config.toml of any run shows every setting. To train with a program in any language, set
    `command = "python your_agent.py"` instead of `agent`. See `agl rollout --help`.
    """
    if resume is not None and dry_run:
        raise ConfigError("--dry-run checks a new run, but --resume continues an old one. Remove one of them.")
    if resume is not None and (model is not None or lr is not None):
        raise ConfigError(f"--resume continues a run with its own settings. Remove {'--lr' if model is None else '--model'}.")
    run = open_training(resume) if resume is not None else None
    if config is None:
        if run is None:
            raise ConfigError("`agl train` has nothing to train. Give it a config file, or `--resume RUN`.")
        config = run.config
    from agentlightning.config.parts import naming
    from agentlightning.config.schema import load_config

    settings = changed(load_config(config), model, lr)
    if settings.runner.remote and not dry_run:
        check_log_token(os.environ.get("AGL_TOKEN"))
    with naming(config), open_progress() as progress:
        if dry_run:
            from agentlightning.training.dry_run import dry_run as check

            print_dry_run(check(settings, progress=progress), Console())
            return
        from agentlightning.training.train import train_config

        done = train_config(settings, resume=run.path if run else None, progress=progress)
    print_run(done, Console(), diagnosis=not progress.shows_diagnosis)
    if done.stopped:
        raise typer.Exit(130)


NO_CHECKPOINT = "There is no checkpoint yet, so a resumed run starts again."


def changed(settings: Config, model: str | None, lr: float | None) -> Config:
    """Return the settings with another model and learning rate; None: the config's own."""
    from agentlightning.config.models import model_path

    if model is not None:
        settings = replace(settings, model=model_path(model, Path.cwd()))
    return settings if lr is None else replace(settings, trainer={**settings.trainer, "lr": lr})


def open_training(name: str) -> RunFolder:
    """Return the training run that a user named; `latest` skips the folders of `agl rollout`. Raises `RunError` if it trained nothing."""
    run = RunFolder.latest_training() if name == "latest" else RunFolder.open(name)
    if not run.state.exists():
        raise RunError(f"Run {run.name} has no state.json, so there is no training to resume. Name a run of `agl train`.")
    return run


def shown_path(path: Path) -> str:
    """Return a path as you would type it in this folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def print_run(run: Run, console: Console, *, diagnosis: bool = True) -> None:
    """Print the result of a run, its folder, and the next commands. `diagnosis`: also why it does not learn."""
    folder = shown_path(run.folder)
    if run.stopped:
        steps, kept = run.result.get("steps", 0), max(RunFolder(run.folder).steps(), default=0)
        rest = "All finished steps are kept." if kept >= steps else f"The last checkpoint is of step {kept}, so a resumed run starts there."
        console.print(Text.assemble(("stopped", "yellow"), f" after step {steps}. {rest if kept or not steps else NO_CHECKPOINT}"))
        console.print(f"continue with:  agl train --resume {folder}", soft_wrap=True, highlight=False)
        return
    if run.result.get("eval"):
        console.print(before_after_table(run.result))
    print_prompts(RunFolder(run.folder), console)
    if diagnosis:
        print_diagnosis(RunFolder(run.folder), console)
    rows = [("run", folder), ("time", duration(run.result.get("seconds")))]
    rows += saved_rollouts(run.result["sampler"]) if "saved_rollouts" in run.result.get("sampler", {}) else []
    if "checkpoint" in run.result and "prompts" not in run.result:
        rows += [("weights", shown_path(run.checkpoint)), ("", str(run.result.get("policy_reason", "")))]
    rows += [("look at it", f"agl show {folder}"), ("serve it", f"agl serve {folder}")]
    for name, value in rows:
        console.print(f"{name:<11}{value}", soft_wrap=True, highlight=False)


def saved_rollouts(sampler: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return rows with the rollouts that a curriculum saved, from `sampler` in `result.json`."""
    saved, low, high, rollouts = (sampler[name] for name in ("saved_rollouts", "saved_rollouts_low", "saved_rollouts_high", "rollouts"))
    wasted, uniform = sampler["no_signal_rollouts"] / rollouts, sampler["uniform_no_signal_rollouts"] / rollouts
    verb = "no significant saving: about" if low <= 0 <= high else "saved about" if saved > 0 else "cost about"
    return [
        ("sampler", f"{verb} {abs(saved):.0f} of {rollouts} rollouts (95% interval {low:.0f} to {high:.0f})"),
        ("", f"{wasted:.0%} were in groups without signal, and about {uniform:.0%} would have been with uniform sampling"),
    ]


def print_dry_run(report: DryRun, console: Console) -> None:
    """Print the measurements and estimates of a dry run."""
    table = Table(Column(style="bold"), Column(), title="Dry run: no weights were kept", title_justify="left", show_header=False)
    reward = "not scored" if report.reward is None else f"mean reward {report.reward:.3f}"
    failed = f", {report.failed} failed" if report.failed else ""
    tasks = "one task" if report.groups == 1 else f"{report.groups} tasks"
    tokens = f"{report.step_prompt_tokens:,.0f} prompt and {report.step_sampled_tokens:,.0f} sampled tokens"
    for name, value in (
        ("model", "\n".join(report.model)),
        ("rollouts", f"{report.rollouts} of {tasks} in {duration(report.rollout_seconds)}, {reward}{failed}"),
        *((("signal", report.signal.text),) if report.signal else ()),
        ("model calls", f"{report.transitions}: {report.prompt_tokens:,} prompt and {report.sampled_tokens:,} sampled tokens"),
        ("training", "nothing to train" if report.training_seconds is None else f"{duration(report.training_seconds)} for these"),
        ("one step", f"about {duration(report.step_seconds)}, {tokens}"),
        ("the run", f"about {duration(report.run_seconds)}"),
        ("memory", f"{_bytes(report.memory_bytes)} at most so far"),
        ("disk", f"about {_bytes(report.disk_bytes)}, {_bytes(report.checkpoint_bytes)} a checkpoint; free: {_bytes(report.free_bytes)}"),
    ):
        table.add_row(name, Text(value))
    if report.suggestions:
        table.add_row("suggested", Text(_suggested(report)))
    console.print(table)
    if report.error:
        console.print(Text.assemble(("first failure: ", "bold red"), report.error), soft_wrap=True)
    if report.disk_bytes > report.free_bytes:
        console.print("The disk is too small for this run. Free some space, or keep fewer checkpoints.", style="bold red", soft_wrap=True)


def _suggested(report: DryRun) -> str:
    lines = [suggestion.text for suggestion in report.suggestions]
    if report.suggested_step_seconds != report.step_seconds:
        lines.append(f"One step then takes about {duration(report.suggested_step_seconds)}.")
    return "\n".join([*lines, report.advice] if report.advice else lines)


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
