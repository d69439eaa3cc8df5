"""`agl models`."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import rich.progress
import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from agentlightning.config.models import FetchProgress, cache_folder, find_model
from agentlightning.files import folder_bytes
from agentlightning.registry.registry import registry

if TYPE_CHECKING:
    from agentlightning.gateway.rendering.report import Turn
    from agentlightning.serving.model_check import ModelReport

app = typer.Typer(no_args_is_help=True, help="List, download, and check models.")


@app.command("list")
def list_models() -> None:
    """List models you can download by name, and show which are cached.

    A config file names one of these, a folder, a .gguf file, a LoRA adapter, a run, or a hub id (`owner/name`).

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
def check(model: Annotated[str, typer.Argument(metavar="MODEL", help="Any name that `agl serve` takes.")]) -> None:
    """Show how a model is rendered, served, and trained, and how much memory that takes. Loads no weights.

    **Examples**

    `agl models check smollm2-135m`

    `agl models check ./my-model.gguf`
    """
    from agentlightning.serving.model_check import check_model

    console = Console(stderr=True)
    with _bar(console) as progress:
        report = check_model(model, progress=progress)
    print_model(report, Console())
    if report.rendering is None or report.weights_problem is not None:
        raise typer.Exit(1)


@app.command()
def pull(name: Annotated[str, typer.Argument(help="A name from `agl models list`.")]) -> None:
    """Download a model into the cache and print its folder. Training also downloads missing models.

    **Example**

    `agl models pull smollm2-135m`
    """
    with _bar(Console(stderr=True)) as progress:
        files = find_model(name, progress=progress)
    if Path(files.path).is_dir():
        typer.echo(files.path)
    else:
        typer.echo(f"{files.path} is a hub id. It is downloaded when it is first loaded.")


@contextmanager
def _bar(console: Console) -> Generator[FetchProgress]:
    """Show the progress of a search for a model."""
    bar = rich.progress.Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    )
    with bar:
        job = bar.add_task("finding the model", total=None)

        def progress(what: str, part: float | None) -> None:
            bar.update(job, description=what, total=None if part is None else 1.0, completed=part or 0.0)

        yield progress


def print_model(report: ModelReport, console: Console) -> None:
    """Print the check of a model on one screen."""
    table = Table(
        Column(style="bold"), Column(overflow="fold"), title=f"Model {report.files.name}", title_justify="left", show_header=False
    )
    for name, value in [*_fact_rows(report), *_rendering_rows(report), *_backend_rows(report)]:
        table.add_row(name, value if isinstance(value, Text) else Text(value))
    console.print(table)


def _fact_rows(report: ModelReport) -> Iterator[tuple[str, str | Text]]:
    facts = report.facts
    shape = {"layers": facts.layers, "hidden size": facts.hidden, "vocabulary": facts.vocabulary, "context": facts.context}
    sizes = ", ".join(f"{name} {value:,}" for name, value in shape.items() if value is not None)
    yield "architecture", f"{facts.architecture} ({facts.model_type}): {sizes}"
    yield "weights", f"{facts.size}, {facts.dtype}"
    if report.weights_problem is not None:
        yield "", Text(f"The model has {report.weights_problem}", style="yellow")
    cache = "" if facts.kv_token is None else f", and {_bytes(1000 * facts.kv_token)} for 1,000 tokens in flight"
    for name, needed in (("serve", report.serve_bytes), ("train in full", report.full_bytes), ("train LoRA", report.lora_bytes)):
        if needed is not None:
            note = report.memory_note(needed, serving=name == "serve")
            yield f"memory to {name}", f"{_bytes(needed)}{cache if name == 'serve' else ''}{note and f'; {note}'}"


def _rendering_rows(report: ModelReport) -> Iterator[tuple[str, str | Text]]:
    rendering = report.rendering
    if rendering is None:
        yield "renderer", Text(f"none: {report.problem}", style="yellow")
        return
    yield "renderer", f"{rendering.renderer}: {rendering.why}"
    yield "tool calls", f"{rendering.tools}\n{rendering.example}".rstrip()
    if rendering.reasoning:
        yield "reasoning", rendering.reasoning
    yield "replies end with", ", ".join(rendering.stops) or Text("nothing. Set eos_token_id in generation_config.json.", style="yellow")
    for history, turns in rendering.turns.items():
        name = f'history = "{history}"' + (" (set)" if history == rendering.history else "")
        yield name, _turns_text(turns, history == rendering.history == "template" and not _rewritten(rendering.turns["exact"]))
    for note in rendering.notes:
        yield "note", Text(note, style="yellow")


def _rewritten(turns: Sequence[Turn]) -> str:
    return "; ".join(f"{place}: {cause}" for place, cause in turns if cause != "bridged")


def _turns_text(turns: Sequence[Turn], exact_helps: bool) -> Text:
    text = _rewritten(turns)
    if not text:
        return Text("every turn continues the sampled tokens")
    return Text(f'{text}. Set history = "exact" to keep them.' if exact_helps else text, style="yellow")


def _backend_rows(report: ModelReport) -> Iterator[tuple[str, Text]]:
    styles = {"yes": "green", "no": "red", "unknown": "dim"}
    for backend in report.backends:
        takes, note = backend.fit.takes, backend.fit.note
        answer = "not known" if takes == "unknown" else takes
        yield f"{backend.kind} {backend.name}", Text.assemble((answer, styles[takes]), f": {note}" if note else "")


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
