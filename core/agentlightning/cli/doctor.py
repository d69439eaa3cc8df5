"""`agl doctor`."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from agentlightning.registry.registry import registry
from agentlightning.serving.doctor import Advice, Checked, Machine, advise, check, machine

STYLES = {"works": "green", "missing": "yellow", "broken": "bold red"}


def doctor() -> None:
    """Show hardware, recommend an engine and trainer, and test the installed plugins.

    Each test takes a few seconds. The exit code is 1 if an installed plugin fails.

    **Example**

    `agl doctor`
    """
    console = Console()
    this = machine()
    report_machine(this, console)
    report_advice(advise(this), console)
    checked: list[Checked] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        job = bar.add_task("")
        for name in registry().names("checks"):
            bar.update(job, description=f"testing {name}")
            checked.append(check(name))
    report_checks(checked, console)
    for name, why in registry().broken.items():
        console.print(Text.assemble("\n", ("broken", "bold red"), f" plugin {name!r} is not used: {why}"), soft_wrap=True)
    if registry().broken or any(result.state == "broken" for result in checked):
        raise typer.Exit(1)


def report_machine(this: Machine, console: Console) -> None:
    rows = [("system", this.system), ("Python", this.python), ("CPU cores", str(this.cores))]
    if this.memory is not None:
        rows.append(("memory", _gib(this.memory)))
    rows.append(("disk free", f"{_gib(this.disk_free)} in this folder's file system"))
    for number, gpu in enumerate(this.gpus):
        rows.append((f"GPU {number}", f"{gpu.name}, {_gib(gpu.memory)}, {_gib(gpu.free)} free"))
    rows.append(("NVIDIA driver", this.driver or "none: no GPU is used"))
    rows.append(("packages", ", ".join(f"{name} {version}" for name, version in this.packages.items()) or "none of ours"))
    _print("This machine", rows, console)


def report_advice(advice: Advice, console: Console) -> None:
    size = f"by memory, up to about {advice.full:.1f} billion parameters in full, {advice.lora:.1f} with LoRA"
    rows = [("engine", advice.engine), ("trainer", advice.trainer), ("why", advice.why), ("model size", size)]
    rows += [("install", command) for command in advice.commands]
    _print("What fits", rows, console)


def report_checks(checked: list[Checked], console: Console) -> None:
    names = (Column(heading, no_wrap=True) for heading in ("plugin", "state", "seconds"))
    columns = (*names, Column("result, or fix", overflow="fold"))
    table = Table(*columns, title="Plugins, tested", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for result in checked:
        seconds = f"{result.seconds:.1f}" if result.seconds else ""
        table.add_row(Text(result.name, style="bold"), Text(result.state, style=STYLES[result.state]), seconds, Text(result.message))
    console.print()
    console.print(table)


def _print(title: str, rows: list[tuple[str, str]], console: Console) -> None:
    columns = (Column(style="bold", no_wrap=True), Column(overflow="fold"))
    table = Table(*columns, title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print()
    console.print(table)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
