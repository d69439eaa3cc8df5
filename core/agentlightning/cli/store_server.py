"""`agl store serve`."""

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


def serve(
    store: Annotated[
        str | None, typer.Argument(metavar="[STORE]", help="A store's address or file. Default: AGL_STORE, or ./agl.db.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. 0.0.0.0 lets other machines in, and needs your own token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on (0 = any free port).")] = 9000,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="The token that clients must send. Default: AGL_TOKEN. Without it, a random token for this machine only."
        ),
    ] = None,
) -> None:
    """Serve a store to runners, gateways, and scripts on other machines. Ctrl-C stops it.

    Whoever has the token can read and write everything in the store.

    **Examples**

    `agl store serve agl.db` prints the address of the store, with its token.

    `AGL_TOKEN=... agl store serve agl.db --host 0.0.0.0` serves other machines.

    `agl show http://TOKEN@127.0.0.1:9000` lists its rollouts.
    """
    from agentlightning.gateway.listener import is_loopback
    from agentlightning.serving.store import serve_store

    secret = token or os.environ.get("AGL_TOKEN")
    if not secret and not is_loopback(host):
        raise ConfigError(f"--host {host} lets other machines in, but the store has no token. Set AGL_TOKEN to a secret of yours.")

    check_log_token(secret)

    def ready(address: str) -> None:
        if is_json():
            log.info("serving the store at %s", address)
            return
        console = Console()
        console.print(f"store     {address}", soft_wrap=True, highlight=False)
        console.print("Ctrl-C stops it", style="dim")

    serve_store(store, host=host, port=port, token=secret or secrets.token_urlsafe(24), ready=ready)
