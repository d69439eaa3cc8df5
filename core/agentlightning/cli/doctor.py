"""`agl doctor`."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from agentlightning.registry.registry import registry
from agentlightning.serving.doctor import Advice, Checked, Machine, advise, check, machine

STYLES = {"works": "green", "missing": "yellow", "broken": "bold red"}


def doctor() -> None:
    """Say what this machine has, which engine and trainer fit it, and try out every plugin that is installed.

    Each plugin is tried for some seconds. The exit code is 1 where one is installed and does not work.

    **Example**

    `agl doctor`
    """
    console = Console()
    found = machine()
    report_machine(found, console)
    report_advice(advise(found), console)
    checked: list[Checked] = []
    names = registry().names("checks")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        job = bar.add_task("", total=len(names))
        for name in names:
            bar.update(job, description=f"trying {name}")
            checked.append(check(name))
            bar.advance(job)
    report_checks(checked, console)
    for name, why in registry().broken.items():
        console.print(Text.assemble("\n", ("broken", "bold red"), f" plugin {name!r} was left out: {why}"), soft_wrap=True)
    if registry().broken or any(each.state == "broken" for each in checked):
        raise typer.Exit(1)


def report_machine(found: Machine, console: Console) -> None:
    rows = [("system", found.system), ("Python", found.python), ("CPU cores", str(found.cores))]
    if found.memory is not None:
        rows.append(("memory", _gib(found.memory)))
    rows.append(("disk free", f"{_gib(found.disk_free)} in this folder's file system"))
    for number, gpu in enumerate(found.gpus):
        rows.append((f"GPU {number}", f"{gpu.name}, {_gib(gpu.memory)}, {_gib(gpu.free)} free"))
    rows.append(("NVIDIA driver", found.driver or "none: no GPU is used"))
    rows.append(("packages", ", ".join(f"{name} {version}" for name, version in found.packages.items()) or "none of ours"))
    _print("This machine", rows, console)


def report_advice(advice: Advice, console: Console) -> None:
    rows = [
        ("engine", advice.engine),
        ("trainer", advice.trainer),
        ("why", advice.why),
        (
            "model size",
            f"by memory, up to some {advice.full:.1f} billion parameters in full, {advice.lora:.1f} with LoRA; speed is another matter",
        ),
    ]
    rows += [("install", command) for command in advice.commands]
    _print("What fits", rows, console)


def report_checks(checked: list[Checked], console: Console) -> None:
    table = Table(title="Plugins, tried out", title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold")
    for heading in ("plugin", "state", "seconds", "what it did, or what to do"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "what it did, or what to do")
    for each in checked:
        seconds = f"{each.seconds:.1f}" if each.seconds else ""
        table.add_row(Text(each.name, style="bold"), Text(each.state, style=STYLES[each.state]), seconds, Text(each.said))
    console.print()
    console.print(table)


def _print(title: str, rows: list[tuple[str, str]], console: Console) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print()
    console.print(table)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
