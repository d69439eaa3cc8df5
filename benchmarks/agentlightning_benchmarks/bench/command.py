"""`agl bench`: list the benchmarks, run one, or resume one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentlightning.cli.options import with_options
from agentlightning.cli.rendering import RenderingOptions
from agentlightning.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of `agl bench`."""

    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Benchmark name. Leave it out to list them.", show_default=False)] = (
        None
    )
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Settings: `cpu`, `gpu`, `real` (a larger model on a CPU), another preset of the benchmark, or a config file of your own.",
            show_default="cpu",
        ),
    ] = None
    data: Annotated[
        Path | None, typer.Option(metavar="DIR|NAME", help="Real tasks: a folder, `gsm8k`, or `musique`.", show_default=False)
    ] = None
    eval_only: Annotated[bool, typer.Option("--eval-only", help="Evaluate the model without training it.")] = False
    model: Annotated[
        str | None,
        typer.Option(help="Start from this model: any name that `agl serve` takes.", show_default="the preset's"),
    ] = None
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Repeat the option to run several seeds.", show_default="0")] = None
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps after the warm-up.", show_default="the preset's")] = None
    test_suite: Annotated[bool, typer.Option("--test-suite", help="text-to-sql only: score on every variant of each Spider database.")] = (
        False
    )
    no_eval_cache: Annotated[bool, typer.Option("--no-eval-cache", help="Don't reuse evaluations of earlier runs in the folder.")] = False
    folder: Annotated[Path | None, typer.Option(help="Write the benchmark folder here.", show_default="runs")] = None


def used(options: Options, rendering: RenderingOptions) -> list[str]:
    """Return the given arguments, spelled as on the command line."""
    names = [field.name for group in (options, rendering) for field in dataclasses.fields(group) if getattr(group, field.name)]
    return ["NAME" if name == "name" else f"--{name.replace('_', '-')}" for name in names]


@with_options
def bench(
    *,
    options: Options,
    rendering: RenderingOptions,
    resume: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Resume a benchmark.", show_default=False)] = None,
) -> None:
    """Run a benchmark: train its agent, and evaluate it on the test tasks before, during, and after. Without a name, list the benchmarks.

    Writes `runs/bench-NAME-<time>/` with `result.json` (every number), `reward.png` (train and test curve), and the runs themselves. The
    CPU presets of `rag` and `text-to-sql` begin with a supervised warm-up. The curve and the numbers start after it.

    **Examples**

    `agl bench math` trains on generated tasks. It takes about ten minutes on two cores.

    `agl bench rag --seed 0 --seed 1 --seed 2` runs three seeds and reports the 95% confidence interval of the change.

    `agl bench math --data gsm8k --steps 2` runs the same agent on real questions. If there is no folder `gsm8k`, the data set is
    downloaded once. `musique` works the same way for `rag`. Spider needs a folder that you download yourself.

    `agl bench text-to-sql --eval-only` evaluates the untrained model.

    `agl bench text-to-sql --preset mine.toml` trains with a config file of your own. Copy one of the benchmark's presets to begin. A copy
    has no warm-up.

    `agl bench --resume runs/bench-math-20261123-231500` continues after Ctrl-C.
    """
    from agentlightning_benchmarks.bench.phases import create, open_order

    arguments = used(options, rendering)
    if resume is not None:
        if arguments:
            raise ConfigError(f"--resume uses the original arguments. Leave out {', '.join(arguments)}.")
        path = resume.resolve()
        work(open_order(path), path)
    elif options.name is not None:
        order = order_of(options, rendering, options.name)
        check(order)
        work(order, create(order, (options.folder or Path("runs")).resolve()))
    elif arguments:
        raise ConfigError(f"{', '.join(arguments)} needs the name of a benchmark: {', '.join(benchmark_names())}. Or use --resume FOLDER.")
    else:
        show_benchmarks(Console())


def benchmark_names() -> list[str]:
    """Return the registered benchmark names."""
    from agentlightning.registry.registry import registry

    return registry().names("benchmarks")


def show_benchmarks(console: Console) -> None:
    """Print a table of the registered benchmarks and how to run one."""
    from agentlightning.registry.registry import registry

    table = Table("benchmark", "", "plugin", "needs", box=None, pad_edge=False)
    for entry in registry().entries("benchmarks"):
        table.add_row(entry.name, entry.summary, entry.plugin, escape(entry.install) if entry.missing else "")
    console.print(table)
    console.print("\nRun one with: agl bench NAME", highlight=False)


def order_of(options: Options, rendering: RenderingOptions, name: str) -> Any:
    """Return the order for `check` and `work`."""
    from agentlightning.config.models import model_path
    from agentlightning_benchmarks.bench import catalog
    from agentlightning_benchmarks.bench.phases import Order
    from agentlightning_benchmarks.bench.public import data_folder

    seeds, model = tuple(options.seed or [0]), options.model
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seed {max(seeds, key=seeds.count)} is given twice. The same seed gives the same result, so leave one out.")
    return Order(
        benchmark=name,
        preset=catalog.preset_name(options.preset or "cpu"),
        data=None if options.data is None else str(data_folder(name, options.data)),
        eval_only=options.eval_only,
        model=None if model is None else model_path(model, Path.cwd()),
        seeds=seeds,
        steps=options.steps,
        test_suite=options.test_suite,
        eval_cache=not options.no_eval_cache,
        rendering=rendering.keys(),
    )


def check(order: Any) -> None:
    """Raise the first error in names, extras, presets, or files, before any folder is created."""
    from agentlightning.config.models import find_model
    from agentlightning.registry.registry import registry
    from agentlightning_benchmarks.bench import catalog

    benchmark = catalog.find(order.benchmark)
    if order.model is not None and order.model not in registry().names("models"):
        find_model(order.model)
    if order.eval_only and order.steps is not None:
        raise ConfigError("--eval-only trains nothing, so --steps has no effect. Leave one of them out.")
    catalog.warm_start(benchmark, order.preset, 0)
    catalog.job(benchmark, catalog.preset(benchmark, order.preset), real=order.data, test_suite=order.test_suite)


def work(order: Any, path: Path) -> None:
    """Run the remaining seeds and print the result."""
    from agentlightning.cli.train import shown_path
    from agentlightning_benchmarks.bench import chart, report
    from agentlightning_benchmarks.bench.phases import Phases, run_seed

    console, messages = Console(), Console(stderr=True)
    resume_hint = f"Stopped. Continue with: agl bench --resume {shown_path(path)}"
    done: list[Phases] = []
    result: dict[str, Any] = {}
    for seed in order.seeds:
        try:
            done.append(run_seed(order, seed, path, lambda text: messages.print(text, style="bold", highlight=False)))
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(resume_hint) from stop
        except BaseException:
            messages.print(f"Finished runs are kept. Continue with: agl bench --resume {shown_path(path)}", highlight=False, soft_wrap=True)
            raise
        result = report.make_result(order, done, path)
        report.write_result(result, path)
        chart.draw(result, path / "reward.png")
        if done[-1].stopped:
            raise KeyboardInterrupt(resume_hint)
    report.print_result(result, console)
    for label, file in [("numbers", report.RESULT), ("curve", "reward.png"), *(("run", run["folder"]) for run in result["runs"])]:
        console.print(f"{label:<11}{shown_path(path / file)}", soft_wrap=True, highlight=False)
