"""`agl view`."""

from __future__ import annotations

import logging
import os
import secrets
from typing import Annotated

import typer
from rich.console import Console

from agentlightning.cli.serve import check_log_token
from agentlightning.errors import ConfigError
from agentlightning.telemetry.logs import is_json

log = logging.getLogger("agentlightning.serve")


def view(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN or STORE]",
            help="A run, `latest` (the newest that has begun to record), a folder of runs, a store file, or a store's address.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. 0.0.0.0 lets other machines in, and needs your own token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on (0 = any free port).")] = 8600,
) -> None:
    """Open a page in your browser that shows what an agent did and learned. Ctrl-C stops it.

    The page shows runs with their curves, every rollout with its messages, tools and rewards, and the exact tokens that were trained. It
    follows a run while it trains, and it changes nothing. Without an argument it shows the runs in ./runs, and ./agl.db.

    The printed link holds a token. Whoever has it reads everything that the page shows. Set `AGL_TOKEN` to choose your own.

    **Examples**

    `agl view` shows all runs in ./runs.

    `agl view latest` opens the last run, also while it trains.

    `agl view agl.db` shows rollouts that `agl.rollout(task)` or `agl serve` recorded.

    `agl view http://TOKEN@trainer:9000` shows the store that `agl store serve` serves on another machine.

    `ssh -L 8600:localhost:8600 trainer agl view` shows runs on another machine in your own browser.
    """
    from agentlightning.gateway.listener import is_loopback
    from agentlightning.page.library import find_library
    from agentlightning.page.server import serve_page

    secret = os.environ.get("AGL_TOKEN")
    if not secret and not is_loopback(host):
        raise ConfigError(f"--host {host} lets other machines in, but the page has no token. Set AGL_TOKEN to a secret of yours.")
    check_log_token(secret)

    def ready(link: str) -> None:
        if is_json():
            log.info("serving the page at %s", link.partition("#")[0])
            return
        console = Console()
        console.print(f"Open {link}", soft_wrap=True, highlight=False)
        console.print("Ctrl-C stops it", style="dim")

    serve_page(find_library(name), host=host, port=port, token=secret or secrets.token_urlsafe(24), ready=ready)
