"""The trainer's side of `runner.remote`: prints the command that starts a runner elsewhere, and says when no runner is alive."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable

from agentlightning.runner.remote import RemoteRunner
from agentlightning.stores.http_server import StoreServer


def runner_command(runner: RemoteRunner) -> str:
    """Return the command that starts a runner on another machine."""
    words = ["agl", "runner", "--store", runner.store]
    words += ["--agent", runner.agent] if runner.agent is not None else ["--command", runner.command or "", "--reward", runner.reward]
    for adapter in runner.adapters:
        words += ["--adapter", adapter]
    return shlex.join(words)


async def watch_runners(server: StoreServer, lease: float, command: str, tell: Callable[[str], None]) -> None:
    """Tell how to start a runner, when the first one asks for work, and when none has for `lease` seconds. Runs until cancelled."""
    tell(f"Waiting for runners. Start one on each machine that has the agent:\n{command}")
    alive, since = False, time.monotonic()
    while True:
        await asyncio.sleep(0.5)
        seen = server.last_sign is not None and time.monotonic() - server.last_sign < lease
        if seen and not alive:
            tell("A runner asks for work.")
        elif alive and not seen:
            tell(f"No runner has asked for work for {lease:g} s, so the run waits. Start one:\n{command}")
        elif not seen and time.monotonic() - since > lease:
            tell(f"There is still no runner after {lease:g} s. Start one:\n{command}")
            since = float("inf")
        alive = seen
