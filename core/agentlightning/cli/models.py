"""`agl models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from agentlightning.config.models import cache_folder, find_model
from agentlightning.registry.registry import registry

app = typer.Typer(no_args_is_help=True, help="Fetch models by name, and list what can be fetched.")


@app.command("list")
def list_models() -> None:
    """List the models that can be fetched by name, and whether they are in the cache already.

    A configuration may name one of these, a folder that `from_pretrained` loads, or the id of a hub (`owner/name`).

    **Example**

    `agl models list`
    """
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "what it is", "in the cache"):
        table.add_column(heading)
    for entry in registry().entries("models"):
        folder = cache_folder() / "models" / entry.name
        state = Text("not yet", style="dim")
        if (folder / "config.json").is_file():
            state = Text(f"{_size(folder) / 2**20:,.0f} MiB", style="green")
        elif entry.missing:
            state = Text(f"needs {', '.join(entry.missing)}: {entry.install}", style="yellow")
        table.add_row(Text(entry.name, style="bold"), Text(entry.summary), state)
    console.print(table)
    console.print(f"cache: {cache_folder()} (AGL_CACHE moves it)", soft_wrap=True, highlight=False)


@app.command()
def pull(name: Annotated[str, typer.Argument(help="A name of `agl models list`.")]) -> None:
    """Fetch a model into the cache, once; training fetches it by itself as well. Prints the folder.

    **Example**

    `agl models pull smollm2-135m`
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    )
    with bar:
        job = bar.add_task(f"finding {name}", total=None)

        def progress(what: str, part: float | None) -> None:
            bar.update(job, description=what, total=None if part is None else 1.0, completed=part or 0.0)

        files = find_model(name, progress=progress)
    if Path(files.path).is_dir():
        typer.echo(files.path)
    else:
        typer.echo(f"{files.path} is the id of a hub: it is fetched by whoever loads it first")


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
