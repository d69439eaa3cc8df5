"""`agl store`: commands about stores."""

from __future__ import annotations

import typer

from agentlightning.cli.store_server import serve

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Serve stores.")
app.command("serve")(serve)
