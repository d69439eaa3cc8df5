"""The entry of `agl`: collects the commands, and turns errors into one clear message.

Exit codes: 0 success; 1 failure; 2 a wrong setting or argument; 130 Ctrl-C. Unexpected errors show a traceback, and so does every error
with `--debug` or `AGL_DEBUG=1`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from agentlightning.cli import config, doctor, export, init, models, rollout, runner, runs, score, serve, show, store, train
from agentlightning.cli import page as page_command
from agentlightning.cli import plugins as plugins_command
from agentlightning.errors import ConfigError, LightningError
from agentlightning.registry.registry import Entry, Registry, registry
from agentlightning.telemetry.logs import VARIABLE, LogFormat, is_json, set_up_logs

log = logging.getLogger("agentlightning")
EPILOG = "Start with `agl demo`. See `agl COMMAND --help` for the options and examples of a command."


class Commands(TyperGroup):
    """Runs a command; an error of ours becomes a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LightningError as error:
            if debugging():
                raise
            complain(str(error))
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error
        except KeyboardInterrupt as stop:
            hint = stop.args[0] if stop.args else "stopped"
            complain(str(hint), style="yellow")
            raise typer.Exit(130) from stop


def debugging() -> bool:
    return os.environ.get("AGL_DEBUG", "") not in ("", "0")


def complain(message: str, style: str = "bold red") -> None:
    """Print an error on stderr, or log it."""
    if is_json():
        log.log(logging.ERROR if style == "bold red" else logging.WARNING, "%s", message)
        return
    head = "error: " if style == "bold red" else ""
    Console(stderr=True).print(Text.assemble((head, style), (message, "" if head else style)), soft_wrap=True)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"agentlightning {version('agentlightning')}")
        raise typer.Exit


def build(plugins: Registry | None = None) -> typer.Typer:
    """The application, with the commands of all plugins."""
    plugins = plugins or registry()
    app = typer.Typer(
        name="agl",
        cls=Commands,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=EPILOG,
    )

    @app.callback()
    def agl(  # pyright: ignore[reportUnusedFunction]  # typer calls it
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error (also: AGL_DEBUG=1).")] = False,
        log_format: Annotated[
            LogFormat, typer.Option("--log-format", envvar=VARIABLE, help="Write logs and progress as text, or as one JSON object a line.")
        ] = "text",
        show_version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    ) -> None:
        """Train your existing agent with reinforcement learning."""
        if debug:
            os.environ["AGL_DEBUG"] = "1"
        set_up_logs(log_format)

    for entry in plugins.entries("commands"):
        target, summary = _command(entry), entry.summary or None
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=entry.name, help=summary)
        else:
            app.command(entry.name, help=target.__doc__ or summary)(target)
    app.command("init")(init.init)
    app.command("train")(train.train)
    app.command("rollout")(rollout.rollout)
    app.command("serve")(serve.serve)
    app.command("runner")(runner.runner)
    app.command("show")(show.show)
    app.command("view")(page_command.view)
    app.command("runs")(runs.runs)
    app.command("compare")(runs.compare)
    app.command("export")(export.export)
    app.command("push")(export.push)
    app.command("config")(config.config)
    app.command("plugins")(plugins_command.plugins)
    app.command("doctor")(doctor.doctor)
    app.command("score")(score.score)
    app.add_typer(models.app, name="models")
    app.add_typer(store.app, name="store")
    return app


def _command(entry: Entry) -> Callable[..., Any] | typer.Typer:
    """Return a plugin's command. A broken one stays in the list; calling it shows the error."""
    try:
        return entry.load()
    except Exception as error:
        cause = error

        def broken() -> None:
            if isinstance(cause, LightningError):
                raise cause
            raise LightningError(
                f"The command {entry.name!r} of plugin {entry.plugin!r} cannot be loaded: {type(cause).__name__}: {cause}. Fix the plugin."
            ) from cause

        broken.__doc__ = f"(Cannot be loaded: {cause})"
        return broken


def main() -> None:
    """`agl`."""
    if os.getcwd() not in sys.path:  # `my_agent:solve` lies in the current folder, not in this script's
        sys.path.insert(0, os.getcwd())
    build()()
