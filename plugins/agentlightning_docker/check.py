"""Tries a container before a run begins: its limits, its sockets, and Python in the image."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

from agentlightning.errors import AgentError, ConfigError
from agentlightning.runner.process_output import Pipes
from agentlightning_docker.container import Work, run_container
from agentlightning_docker.engines import find_engine
from agentlightning_docker.settings import DockerSettings

SECONDS = 60.0
"""Time for the container, at most."""


def check_machine(settings: DockerSettings) -> None:
    """Start a container as a rollout would. Raises `ConfigError` if no engine works, or the image has no Python."""
    engine = find_engine(settings)
    asyncio.run(_try(engine, dataclasses.replace(settings, timeout=SECONDS)))


async def _try(engine: str, settings: DockerSettings) -> None:
    nowhere = Work(arguments=["python3", "--version"], environment={}, task="null", gateway=("127.0.0.1", 9))
    with TemporaryDirectory(prefix="agl-docker-") as folder:
        try:
            async with asyncio.timeout(SECONDS):
                code = await run_container(engine, settings, nowhere, Path(folder), Pipes())
        except (AgentError, TimeoutError) as error:
            reason = str(error) or f"no end within {SECONDS:g} s"
            raise ConfigError(
                f"runner.name is 'docker', but {engine} cannot run a container of {settings.image!r}: {reason} The image needs Python 3.8 "
                "or newer as `python3`, and the engine must be on this machine."
            ) from error
    if code != 0:
        raise ConfigError(f"The image {settings.image!r} has no working `python3` (exit code {code}). Install it in the image.")
