"""The trainer's side of `runner.remote`: prints the command that starts a runner elsewhere, and says when no runner is alive."""

from __future__ import annotations

import asyncio
import shlex
import socket
import time
from collections.abc import Callable

from agentlightning.config.schema import Config
from agentlightning.gateway.listener import is_loopback
from agentlightning.runner.runner import Agent
from agentlightning.runner.worker_pool import reference_of
from agentlightning.stores.http_server import StoreServer


def runner_command(config: Config, agent: str | Agent, token: str, base_url: str) -> str:
    """Return the command that starts a runner on another machine. `base_url`: the gateway's own address."""
    own = base_url.removesuffix("/v1")
    host = own if is_loopback(config.host) else f"http://{socket.gethostname()}:{own.rpartition(':')[2]}"
    address = (config.address or host).rstrip("/")
    words = ["agl", "runner", "--store", address.replace("://", f"://{token}@", 1)]
    if config.command is not None:
        words += ["--command", config.command, "--reward", config.reward]
    else:
        words += ["--agent", reference_of(agent)]
    for adapter in config.adapters:
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
