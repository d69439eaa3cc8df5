"""`agl runner`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from agentlightning.cli.options import with_options
from agentlightning.errors import ConfigError
from agentlightning.telemetry.logs import is_json

if TYPE_CHECKING:
    from agentlightning.runner.remote import RemoteRunner, RunnerOrder
    from agentlightning.runner.runner import Runner

log = logging.getLogger("agentlightning.runner")


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """What runs for each task."""

    agent: Annotated[str | None, typer.Option(metavar="MODULE:FUNCTION", help="Your agent. It must be on this machine.")] = None
    command: Annotated[str | None, typer.Option(metavar="LINE", help="Run this command for each task instead of a Python agent.")] = None
    reward: Annotated[
        str, typer.Option(metavar="FROM", help="A command's reward: `stdout` (its last line), `exit_code`, `file`, or `post`.")
    ] = "stdout"
    adapter: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Install a framework adapter first. Repeat for more.")] = None


@with_options
def runner(
    *,
    store: Annotated[str | None, typer.Option(metavar="ADDRESS", help="The store: `http://TOKEN@host:port`. Default: AGL_STORE.")] = None,
    program: AgentOptions,
    gateway: Annotated[str | None, typer.Option(metavar="URL", help="The gateway, if the store has a server of its own.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Ask for this model. Default: the run's.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Rollouts in flight. Default: the run's.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Run actors on the Ray cluster of RAY_ADDRESS instead of this process.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Actors, with --ray. Default: 2.")] = None,
) -> None:
    """Run rollouts for a training run on another machine.

    `agl train` with `[runner] remote = true` prints the command for its runners. Start as many as you like, on any machine that has the
    agent and reaches the address. If the run does not answer, a runner waits and continues later. Ctrl-C gives its rollouts back to the
    run, and another runner repeats them.

    **Examples**

    `agl runner --store http://TOKEN@trainer:8001 --agent my_agent:solve` runs an agent for the run on `trainer`.

    `agl runner --store http://TOKEN@trainer:8001 --command "node agent.js"` runs a program in any language.

    `agl runner --store http://TOKEN@stores:9000 --gateway http://trainer:8001 --agent my_agent:solve` uses a store with a server of its own
    (`agl store serve`).

    `agl runner --ray --workers 8 --store http://TOKEN@trainer:8001 --agent my_agent:solve` starts eight actors with one CPU each.
    """
    address = store or os.environ.get("AGL_STORE", "")
    if not address:
        raise ConfigError("`agl runner` does not know the store. Add --store ADDRESS, or set AGL_STORE.")
    if (program.agent is None) == (program.command is None):
        problem = "both --agent and --command" if program.agent else "no agent"
        raise ConfigError(f"`agl runner` has {problem}. Give one: --agent module:function, or --command LINE.")
    if workers is not None and not ray:
        raise ConfigError(f"--workers is {workers}, but only --ray takes it. Add --ray, or start `agl runner` again for one more runner.")
    from agentlightning.config.rewards import RewardFrom
    from agentlightning.runner.remote import RemoteRunner
    from agentlightning.settings import convert

    arguments = RemoteRunner(
        store=address, agent=program.agent, command=program.command, reward=convert(program.reward, RewardFrom, "--reward"),
        adapters=tuple(program.adapter or ()), gateway=gateway, model=model, concurrency=concurrency,
    )  # fmt: skip
    if not is_json():
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        asyncio.run(_until_stopped(_on_ray(arguments, workers) if ray else _here(arguments)))
    except asyncio.CancelledError:
        raise KeyboardInterrupt("stopped; the rollouts in flight are back in the queue") from None


async def _here(arguments: RemoteRunner) -> None:
    from agentlightning.runner.remote import run_remote

    await run_remote(arguments, _print_start)


async def _on_ray(arguments: RemoteRunner, workers: int | None) -> None:
    from agentlightning.registry.registry import registry

    entry = registry().entry("runners", "ray")
    run, settings = entry.load(), entry.load_settings()(**({} if workers is None else {"workers": workers}))
    print(f"{settings.workers} actors on Ray ask the store for rollouts. Ctrl-C gives the running ones back.", flush=True)
    await run(arguments, settings)


async def _until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Run until SIGINT or SIGTERM; a second signal ends the process at once."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        loop.remove_signal_handler(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    await work


def _print_start(runner: Runner, order: RunnerOrder, gateway: str) -> None:
    if is_json():
        log.info("runner %s waits for rollouts of the gateway %s", runner.name, gateway)
        return
    console = Console()
    rows = {"runner": runner.name, "gateway": gateway, "model": order.model, "in flight": f"at most {runner.settings.concurrency}"}
    for name, value in rows.items():
        console.print(f"{name:<11}{value}", soft_wrap=True, highlight=False)
    console.print("Waiting for rollouts. Ctrl-C gives the running ones back.", style="dim")
