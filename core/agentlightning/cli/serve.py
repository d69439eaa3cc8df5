"""`agl serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from agentlightning.cli.train import open_training
from agentlightning.errors import ConfigError
from agentlightning.training.progress import TrainingProgress

if TYPE_CHECKING:
    from agentlightning.serving.serve import Served


def serve(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run: its folder, its name, or `latest`.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Instead of a run: a model by name, folder or hub id.", show_default=False)
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Instead of a run: forward to an OpenAI-compatible server; `--model` is its model, without it agents name one.",
            show_default=False,
        ),
    ] = None,
    upstream_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The environment variable that holds the upstream's API key.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Where calls are recorded; without it: AGL_STORE, or ./agl.db. A run's own store stays as it is."
        ),
    ] = None,
) -> None:
    """Serve a run's best weights (or a model, or another server's) as an OpenAI endpoint, with the store that calls are recorded in,
    until Ctrl-C.

    The key is printed; `AGL_TOKEN` sets it.

    **Examples**

    `agl serve latest` serves what the last run trained; point any OpenAI client at http://127.0.0.1:8000/v1.

    `agl serve --model smollm2-135m --port 9000` serves a model; `agl.rollout(task, store="http://KEY@HOST:9000")` records there.

    `agl serve --upstream http://127.0.0.1:8080/v1` records what agents ask of a server that is already there.
    """
    if (upstream is None and (run is None) == (model is None)) or (upstream is not None and run is not None):
        raise ConfigError(
            "`agl serve` serves either a run (`agl serve RUN`, `agl serve latest`), a model (`agl serve --model NAME`), or an upstream "
            "(`agl serve --upstream URL`)"
        )
    if upstream_key_env is not None and upstream is None:
        raise ConfigError("--upstream-key-env names the key of an upstream; give its address as --upstream URL")
    from agentlightning.serving.serve import serve as serve_until_stopped

    console = Console()

    def ready(served: Served) -> None:
        for name, value in (
            ("base_url", served.base_url),
            ("api_key", served.token),
            ("model", served.model or "as the agent asks"),
            ("store", served.store),
        ):
            console.print(f"{name:<10}{value}", soft_wrap=True, highlight=False)
        console.print("Ctrl-C stops it", style="dim")

    with TrainingProgress() as progress:
        path = open_training(run).path if run is not None else None
        serve_until_stopped(
            path,
            model=model,
            upstream=upstream,
            upstream_key_env=upstream_key_env,
            host=host,
            port=port,
            store=store,
            progress=progress,
            ready=ready,
        )
