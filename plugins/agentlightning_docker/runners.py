"""Runs rollouts in containers of this machine, until cancelled."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from agentlightning.runner.program import split_command
from agentlightning.runner.remote import RemoteRunner, RunnerOrder, run_remote
from agentlightning_docker.agent import ContainerAgent
from agentlightning_docker.engines import find_engine
from agentlightning_docker.function import Function
from agentlightning_docker.settings import DockerSettings


async def run(arguments: RemoteRunner, settings: DockerSettings) -> None:
    """Claim rollouts here, and run each in a container. Raises `ConfigError` if no engine works."""
    engine = await asyncio.to_thread(find_engine, settings)
    with ExitStack() as exits:

        def make_agent(order: RunnerOrder) -> ContainerAgent:
            return exits.enter_context(ContainerAgent(engine, settings, _program(arguments, order), arguments.reward))

        await run_remote(arguments, lambda *_: None, make_agent)


def _program(arguments: RemoteRunner, order: RunnerOrder) -> list[str] | Function:
    if arguments.command is not None:
        return split_command(arguments.command)
    return Function(agent=arguments.agent or "", adapters=arguments.adapters, models=order.models)
