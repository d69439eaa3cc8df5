"""`agl bench`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from agentlightning.errors import ConfigError


class Preset(StrEnum):
    """Sizes of a benchmark."""

    cpu = "cpu"
    gpu = "gpu"


def bench(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="math, rag or text-to-sql.", show_default=False)] = None,
    preset: Annotated[Preset | None, typer.Option(help="Size: two CPU cores, or one GPU.", show_default="cpu")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR|NAME", help="Real tasks: a folder, or gsm8k, musique.", show_default=False)
    ] = None,
    eval_only: Annotated[bool, typer.Option("--eval-only", help="Train nothing: measure the model as it is.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Start from this model: a registered one, or a checkpoint's folder.", show_default="the preset's")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Give it several times for several runs.", show_default="0")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps after the warm start.", show_default="the preset's")] = None,
    test_suite: Annotated[bool, typer.Option("--test-suite", help="text-to-sql: right on all variants of a real database.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Where the benchmark's folder is made.", show_default="runs")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Go on with a benchmark that was stopped.", show_default=False)
    ] = None,
) -> None:
    """Run a benchmark of the Agent Lightning paper: train its agent, measure it on the test tasks before, during and after.

    Leaves `runs/bench-NAME-<time>/` with `result.json` (every number), `reward.png` (train and test curve) and the runs themselves. Where
    the small model cannot begin, a supervised warm start comes first; curve and numbers start after it, and say so.

    **Examples**

    `agl bench math` trains on generated tasks, in minutes, on two cores.

    `agl bench rag --seed 0 --seed 1 --seed 2` does it three times, and gives the 95% interval of the change.

    `agl bench math --data gsm8k --steps 2` runs the same agent on real questions: those of a folder of this name, else the public data
    set, which is fetched once.

    `agl bench text-to-sql --eval-only` measures the untrained model.

    `agl bench --resume runs/bench-math-20261123-231500` goes on after Ctrl-C.
    """
    from agentlightning_benchmarks.bench.phases import Order, create, open_order
    from agentlightning_benchmarks.bench.public import data_folder

    given = {
        "NAME": name, "--preset": preset, "--data": data, "--eval-only": eval_only, "--model": model, "--seed": seed, "--steps": steps,
        "--test-suite": test_suite, "--folder": folder,
    }  # fmt: skip
    if resume is not None:
        more = [key for key, value in given.items() if value]
        if more:
            raise ConfigError(f"--resume goes on with what was asked for at first, so it takes nothing else; leave out {', '.join(more)}")
        path = resume.resolve()
        work(open_order(path), path)
        return
    if name is None:
        raise ConfigError("`agl bench` needs the name of a benchmark: math, rag or text-to-sql; or `--resume FOLDER`")
    seeds = tuple(seed or [0])
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seed {max(seeds, key=seeds.count)} is given twice; the same seed again says nothing new")
    order = Order(
        benchmark=name,
        preset=str(preset or Preset.cpu),
        data=None if data is None else str(data_folder(name, data)),
        eval_only=eval_only,
        model=str(Path(model).resolve()) if model is not None and Path(model).is_dir() else model,
        seeds=seeds,
        steps=steps,
        test_suite=test_suite,
    )
    check(order)
    path = create(order, (folder or Path("runs")).resolve())
    work(order, path)


def check(order: Any) -> None:
    """What can be wrong is said before a folder is made: names, extras, presets, files."""
    from agentlightning.config.models import find_model
    from agentlightning.registry.registry import registry
    from agentlightning_benchmarks.bench import catalog

    entry = catalog.find(order.benchmark)
    if order.model is not None and order.model not in registry().names("models"):
        find_model(order.model)
    if order.eval_only and order.steps is not None:
        raise ConfigError("--eval-only trains nothing, so --steps says nothing; leave one of them out")
    catalog.warm_start(entry, order.preset, 0)
    catalog.job(entry, catalog.preset(entry, order.preset), real=order.data, test_suite=order.test_suite)


def work(order: Any, path: Path) -> None:
    """Do what is left to do, and say what came of it."""
    from agentlightning.cli.train import shown_path
    from agentlightning_benchmarks.bench import chart, report
    from agentlightning_benchmarks.bench.phases import Phases, run_seed

    console, said = Console(), Console(stderr=True)
    go_on = f"stopped; what is finished is kept. Go on with: agl bench --resume {shown_path(path)}"
    done: list[Phases] = []
    result: dict[str, Any] = {}
    for seed in order.seeds:
        try:
            done.append(run_seed(order, seed, path, lambda text: said.print(text, style="bold", highlight=False)))
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(go_on) from stop
        except BaseException:
            said.print(f"what is finished is kept: agl bench --resume {shown_path(path)}", highlight=False, soft_wrap=True)
            raise
        result = report.make_result(order, done, path)
        report.write_result(result, path)
        chart.draw(result, path / "reward.png")
        if done[-1].stopped:
            raise KeyboardInterrupt(go_on)
    report.print_result(result, console)
    for what, where in [("numbers", report.RESULT), ("curve", "reward.png"), *(("run", run["folder"]) for run in result["runs"])]:
        console.print(f"{what:<11}{shown_path(path / where)}", soft_wrap=True, highlight=False)
