"""A runner on any machine that reaches the store and the gateway: what `agl runner` does, and what a run tells it.

The agent and its adapters are named on the runner's own machine, so a server cannot make it import anything else. Model and settings come
from the run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentlightning.config.rewards import RewardFrom
from agentlightning.config.schema import RunnerSettings
from agentlightning.config.store_address import shown_address
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import ConfigError
from agentlightning.registry.registry import load_object, registry
from agentlightning.runner.program import CommandAgent
from agentlightning.runner.proxies import reach_loopback
from agentlightning.runner.runner import Agent, Runner
from agentlightning.stores.common import open_store
from agentlightning.stores.http_client import open_http, split_address
from agentlightning.stores.http_server import StoreServer
from agentlightning.types import LLM, Attempt

PATH = "/runner/v1/order"
REFRESH = 20.0
"""Seconds between two looks at the order: a run that was started again may serve another model."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunnerOrder:
    """What a run tells its remote runners."""

    model: str
    models: tuple[str, ...] = ()
    """Names of the model in the agent's code."""
    policies: tuple[str, ...] = ()
    """`LLM.policies`."""
    settings: RunnerSettings = field(default_factory=RunnerSettings)


@dataclass(frozen=True, kw_only=True)
class RemoteRunner:
    """The arguments of `agl runner`."""

    store: str
    """The address of the store, with its token."""
    agent: str | None = None
    """`module:function`. Give this or `command`."""
    command: str | None = None
    """A command line, run in the current folder."""
    reward: RewardFrom = "stdout"
    """Of the command."""
    gateway: str | None = None
    """The gateway's address. None: the store's own, where a run serves both."""
    model: str | None = None
    """None: the run's."""
    adapters: tuple[str, ...] = ()
    concurrency: int | None = None
    """None: the run's."""


def order_route(server: StoreServer, order: RunnerOrder) -> Route:
    """The route that tells the order to runners with the token."""
    body = msgspec.json.encode(order)

    async def answer(request: Request) -> Response:
        return Response(body, media_type="application/json") if server.admits(request) else Response(status_code=401)

    return Route(PATH, answer, methods=["GET"])


@dataclass(slots=True)
class _Source:
    """Where the runner gets its model: from the gateway beside the store, or from the command line."""

    gateway: str
    token: str
    model: str | None
    order: RunnerOrder | None = None

    async def read(self) -> None:
        """Read the order of the run. A gateway without one, as of `agl serve`, tells its model alone."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}  # an empty one is no valid header
        async with httpx.AsyncClient(base_url=self.gateway, headers=headers, timeout=10, trust_env=False) as client:
            answer = await client.get(PATH)
            if answer.status_code == 401:
                raise ConfigError(f"The run at {self.gateway} refused the token. Copy the command that it printed, or set AGL_TOKEN.")
            if answer.status_code == 200:
                self.order = msgspec.json.decode(answer.content, type=RunnerOrder)
            else:
                self.order = RunnerOrder(model=self.model or await self._served(client))

    async def answers(self) -> bool:
        """Whether the gateway answers now. A proxy before it says 502 or 503 while it does not."""
        try:
            async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
                return (await client.get(f"{self.gateway}/health")).status_code < 500
        except httpx.TransportError:
            return False

    async def _served(self, client: httpx.AsyncClient) -> str:
        answer = await client.get("/v1/models")
        if answer.status_code != 200:
            raise ConfigError(
                f"There is no gateway at {self.gateway}: it answered with HTTP {answer.status_code}. Name the gateway with --gateway."
            )
        return str(json.loads(answer.content)["data"][0]["id"])

    async def follow(self) -> None:
        """Read the order again and again."""
        while True:
            await asyncio.sleep(REFRESH)
            try:
                await self.read()
            except (httpx.HTTPError, ConfigError) as error:
                log.debug("The order cannot be read: %s", error)

    @property
    def current(self) -> RunnerOrder:
        assert self.order is not None
        return self.order if self.model is None else dataclasses.replace(self.order, model=self.model)


async def run_remote(
    arguments: RemoteRunner, ready: Callable[[Runner, RunnerOrder, str], None], make_agent: Callable[[RunnerOrder], Agent] | None = None
) -> None:
    """Run rollouts of the store until cancelled; then give the running ones back. Waits for a server that does not answer.

    `ready` is called once, with the runner, the order and the gateway's address. `make_agent` returns the agent in place of the one that
    `arguments` name. Raises `ConfigError` for a wrong agent, `StoreError` for a
    refused token.
    """
    store, gateway, token = _open(arguments)
    source = _Source(gateway, token, arguments.model)
    try:
        await _first(source)
        order = source.current
        settings = dataclasses.replace(order.settings, concurrency=arguments.concurrency or order.settings.concurrency)
        agent = make_agent(order) if make_agent is not None else await asyncio.to_thread(_load, arguments, order.models)
        runner = Runner(store, agent, partial(_llm, source, gateway), settings, gateway_answers=source.answers)
        ready(runner, order, gateway)
        following = asyncio.create_task(source.follow())
        try:
            with agent if isinstance(agent, CommandAgent) else nullcontext():
                await runner.run()
        finally:
            following.cancel()
    finally:
        await store.close()


def _llm(source: _Source, gateway: str, attempt: Attempt) -> LLM:
    """The model of an attempt, as the run orders it now."""
    return LLM(source.current.model, f"{gateway}/v1", attempt.key, source.current.policies)


def _open(arguments: RemoteRunner) -> tuple[LightningStore, str, str]:
    """The store, the gateway's address without `/v1`, and the token."""
    gateway = (arguments.gateway or "").rstrip("/").removesuffix("/v1")
    if arguments.store.partition("://")[0] in ("http", "https"):
        url, token = split_address(arguments.store)
        return open_http(arguments.store, patience=math.inf), gateway or url, token
    if not gateway:
        raise ConfigError(f"The store {shown_address(arguments.store)!r} has no gateway beside it. Name the gateway with --gateway.")
    return open_store(arguments.store), gateway, os.environ.get("AGL_TOKEN", "")


async def _first(source: _Source) -> None:
    """Read the order, as soon as the server answers."""
    told, pause = False, 0.25
    while True:
        try:
            return await source.read()
        except httpx.TransportError as error:
            if not told:
                log.warning("The gateway at %s does not answer (%s). Trying again until it does.", source.gateway, type(error).__name__)
                told = True
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)


def _load(arguments: RemoteRunner, models: Sequence[str]) -> Agent:
    if arguments.command is not None:
        return CommandAgent(arguments.command, reward=arguments.reward)
    reach_loopback()
    for adapter in arguments.adapters:
        registry().load("adapters", adapter)(tuple(models))
    agent: Any = load_object(arguments.agent or "")
    if not callable(agent):
        raise ConfigError(f"The agent {agent!r} is not a function. Define it as `async def solve(task, llm) -> float`, for example.")
    return agent
