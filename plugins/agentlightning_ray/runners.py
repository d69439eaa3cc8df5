"""Keeps `run_remote` running in actors of a Ray cluster."""

# pyright: reportMissingImports=false
# Ray is an extra, so the environment of the type check may lack it.

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray.exceptions import RuntimeEnvSetupError

from agentlightning.errors import AgentError, ConfigError, LightningError
from agentlightning.runner.remote import RemoteRunner
from agentlightning_ray.settings import RaySettings

GRACE = 10.0
"""Seconds for the actors to give their rollouts back."""


class RunnerActor:
    """A runner in a Ray actor."""

    async def run(self, arguments: bytes, path: list[str]) -> None:
        """Run rollouts until cancelled. `path`: where the driver finds its modules."""
        from agentlightning.runner.remote import run_remote

        sys.path[:0] = [entry for entry in path if entry not in sys.path]
        await run_remote(msgspec.json.decode(arguments, type=RemoteRunner), lambda *_: None)


async def run(arguments: RemoteRunner, settings: RaySettings) -> None:
    """Start the actors, and keep them running until cancelled. Raises `ConfigError` without a cluster, `AgentError` when a runner ends."""
    await asyncio.to_thread(_connect, settings)
    options: dict[str, Any] = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "resources": settings.resources}
    actor: Any = ray.remote(**options, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")(RunnerActor)
    body, path = msgspec.json.encode(arguments), [entry or str(Path.cwd()) for entry in sys.path]
    actors = [actor.remote() for _ in range(settings.workers)]
    runs = [started.run.remote(body, path) for started in actors]
    ends = [asyncio.ensure_future(run) for run in runs]
    try:
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        _explain(done.pop())
    finally:
        for run in runs:
            ray.cancel(run)
        await asyncio.wait(ends, timeout=GRACE)
        for end in ends:
            if not end.cancel():
                end.exception()
        for started in actors:
            ray.kill(started)


def _connect(settings: RaySettings) -> None:
    if ray.is_initialized():
        return
    try:
        ray.init(address=settings.cluster, runtime_env=settings.runtime_env or None, log_to_driver=True, logging_level=logging.WARNING)
    except RuntimeEnvSetupError as error:
        raise ConfigError(
            f"Ray cannot ship runner.runtime_env = {settings.runtime_env}: {error} A file that the agent does not need goes into "
            "runner.runtime_env.excludes, or into .gitignore."
        ) from error
    except (ConnectionError, ValueError, RuntimeError) as error:
        place = settings.cluster or "RAY_ADDRESS"
        raise ConfigError(f"Ray cannot be reached at {place}: {error}. Run `ray start --head`, or set runner.cluster.") from error


def _explain(run: asyncio.Future[Any]) -> None:
    """Raise why a runner ended."""
    error = run.exception()
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, LightningError):
        raise cause
    raise AgentError(f"A Ray actor ended: {cause}. Read Ray's log, then resume the run.") from error
