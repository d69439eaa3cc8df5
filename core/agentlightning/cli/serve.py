"""`agl serve`."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from agentlightning.cli.options import with_options
from agentlightning.cli.rendering import RenderingOptions
from agentlightning.contracts.rendering import RenderingChoices
from agentlightning.errors import ConfigError
from agentlightning.telemetry.logs import is_json
from agentlightning.training.logged_progress import open_progress
from agentlightning.types import prompt_version

if TYPE_CHECKING:
    from agentlightning.serving.serve import Served

log = logging.getLogger("agentlightning.serve")
Source = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A run (`runs/x`, or `latest`: the newest training run that has begun to record), a name, a folder, a .gguf file, "
        "a LoRA adapter, or a hub id.",
    ),
]
Model = Annotated[str | None, typer.Option(metavar="NAME", help="The same as MODEL. With --upstream: the name of its model.")]
Upstream = Annotated[str | None, typer.Option(metavar="URL", help="Forward to an OpenAI-compatible server. Name its model with `--model`.")]
UpstreamKey = Annotated[str | None, typer.Option(metavar="NAME", help="Environment variable with the key of that server.")]
Store = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Record calls here. Default: AGL_STORE, or ./agl.db. The run's own store is not changed."),
]


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where the server listens, and what it accepts."""

    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0 lets other machines in.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on (0 = any free port).")] = 8000
    max_body_mb: Annotated[int, typer.Option(metavar="MB", min=1, help="Refuse requests with a larger body.")] = 32


@with_options
def serve(
    *,
    source: Source = None,
    model: Model = None,
    upstream: Upstream = None,
    upstream_key_env: UpstreamKey = None,
    listening: Listening,
    store: Store = None,
    rendering: RenderingOptions,
) -> None:
    """Serve a model over the OpenAI and Anthropic APIs, and record the calls. Ctrl-C stops it.

    `--upstream` forwards calls to another server instead. A trained model turns messages into tokens as in its run, unless you set
    `--renderer` or the options after it. The command prints the API key, and the link of a page that shows the calls. Set `AGL_TOKEN` to
    choose your own key.

    **Examples**

    `agl serve latest` serves the last run's best weights. Point any OpenAI client at http://127.0.0.1:8000/v1.

    `agl serve smollm2-135m --port 9000` serves a model; `agl.rollout(task, store="http://KEY@HOST:9000")` records there.

    `agl serve model.gguf` serves a GGUF file. `agl models check model.gguf` shows how it is rendered.

    `agl serve --upstream http://127.0.0.1:8080/v1` forwards calls to a running server and records them.
    """
    if sum(argument is not None for argument in (source, upstream or model)) != 1:
        sources = {"MODEL": source, "--model": model, "--upstream": upstream}
        problem = " and ".join(name for name, value in sources.items() if value is not None)
        problem = f"`agl serve` takes one of {problem}" if problem else "`agl serve` needs a model, a run or an upstream"
        raise ConfigError(f"{problem}. Use `agl serve MODEL` or `--upstream URL`.")
    if upstream_key_env is not None and upstream is None:
        raise ConfigError("--upstream-key-env is the key of an upstream, but no upstream is named. Add --upstream URL.")
    choices = RenderingChoices(**rendering.keys())
    if upstream is not None and choices.used():
        option = choices.used()[0].replace("_", "-")
        raise ConfigError(f"--{option} has no effect with --upstream, because that server renders the messages. Remove it.")
    check_log_token(os.environ.get("AGL_TOKEN"))
    from agentlightning.page.server import ServedPage
    from agentlightning.serving.serve import Address, served_model, upstream_model
    from agentlightning.serving.serve import serve as serve_until_stopped

    with open_progress() as progress:
        own = source or model or ""
        served = upstream_model(upstream, key_env=upstream_key_env, name=model) if upstream else served_model(own, progress, choices)
        address = Address(listening.host, listening.port, listening.max_body_mb * 2**20)
        serve_until_stopped(served, address, store=store, progress=progress, ready=_print_addresses, page=ServedPage)


def check_log_token(secret: str | None) -> None:
    """Raise `ConfigError` if nobody would learn the key of a server: JSON logs hide it."""
    if is_json() and not secret:
        raise ConfigError("--log-format json hides the key of the server, and it has none of yours. Set AGL_TOKEN to a secret of yours.")


def _print_addresses(served: Served) -> None:
    if is_json():
        log.info("serving %s at %s", served.model or "as the agent asks", served.base_url)
        return
    from agentlightning.page.server import link

    console = Console()
    model = served.model or "as the agent asks"
    page = link(served.base_url.removesuffix("/v1"), served.token)
    rows = {"base_url": served.base_url, "api_key": served.token, "model": model, "store": served.store, "page": page}
    rows |= {"policies": f"{', '.join(served.policies)} (ask for one of them as `model`)"} if served.policies else {}
    rows |= {"weights": served.weights} if served.weights else {}
    rows |= {"prompts": ", ".join(f"{name} {prompt_version(text)}" for name, text in served.prompts.items())} if served.prompts else {}
    for name, value in rows.items():
        console.print(f"{name:<10}{value}", soft_wrap=True, highlight=False)
    console.print("Ctrl-C stops it", style="dim")
