"""`agl models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import rich.progress
import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from agentlightning.config.models import cache_folder, find_model
from agentlightning.files import folder_bytes
from agentlightning.registry.registry import registry

app = typer.Typer(no_args_is_help=True, help="List and download models.")


@app.command("list")
def list_models() -> None:
    """List models you can download by name, and show which are cached.

    A config file names one of these, a folder that `from_pretrained` loads, or a hub id (`owner/name`).

    **Example**

    `agl models list`
    """
    console = Console()
    table = Table("name", "description", "in the cache", box=None, pad_edge=False, header_style="bold")
    for entry in registry().entries("models"):
        folder = cache_folder() / "models" / entry.name
        state = Text("not yet", style="dim")
        if (folder / "config.json").is_file():
            state = Text(f"{folder_bytes(folder) / 2**20:,.0f} MiB", style="green")
        elif entry.missing:
            state = Text(f"needs {', '.join(entry.missing)}: {entry.install}", style="yellow")
        table.add_row(Text(entry.name, style="bold"), Text(entry.summary), state)
    console.print(table)
    console.print(f"cache: {cache_folder()} (set AGL_CACHE to move it)", soft_wrap=True, highlight=False)


@app.command()
def pull(name: Annotated[str, typer.Argument(help="A name from `agl models list`.")]) -> None:
    """Download a model into the cache and print its folder. Training also downloads missing models.

    **Example**

    `agl models pull smollm2-135m`
    """
    console = Console(stderr=True)
    bar = rich.progress.Progress(
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
        typer.echo(f"{files.path} is a hub id. It is downloaded when it is first loaded.")
