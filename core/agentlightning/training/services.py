"""Everything that must run before a rollout can: store, weights, engine, gateway, runners; opened in order, closed in reverse."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from agentlightning.config.models import find_model
from agentlightning.config.schema import Config, RunnerSettings, open_table
from agentlightning.contracts.engine import Engine
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.contracts.store import LightningStore
from agentlightning.contracts.trainer import Trainer, check_capabilities
from agentlightning.errors import ConfigError, UnsupportedSetting
from agentlightning.gateway import Gateway
from agentlightning.gateway.rendering.demonstration import Demonstrate
from agentlightning.registry.registry import load_object, registry
from agentlightning.rl.marks import Needs
from agentlightning.runner.program import CommandAgent
from agentlightning.runner.proxies import reach_loopback
from agentlightning.runner.runner import Agent, Runner, takes_llm
from agentlightning.runner.worker_pool import WorkerOrder, Workers, reference_of
from agentlightning.stores.common import open_store
from agentlightning.training.progress import Progress
from agentlightning.training.weight_sync import WeightSync
from agentlightning.types import new_id


@dataclass(frozen=True, slots=True)
class Stack:
    """What is open."""

    store: LightningStore
    engine: Engine
    trainer: Trainer | None
    weight_sync: WeightSync | None
    """There where there is a trainer."""
    gateway: Gateway
    runners: asyncio.Task[None]
    """Ends only with an error, or when it is cancelled."""


def load_agent(agent: str | Agent, config: Config) -> Agent:
    """The agent itself, checked; adapters that the config names are installed first."""
    for adapter in config.adapters:
        registry().load("adapters", adapter)(config.models)
    if isinstance(agent, str):
        agent = load_object(agent)
    if not callable(agent):
        raise ConfigError(f"the agent {agent!r} is not a function; expected `async def solve(task, llm) -> float` or the like")
    takes_llm(agent)
    return agent


@dataclass(frozen=True, slots=True)
class Plan:
    """A config with its plugins found and their settings checked: what can be wrong in it has been said."""

    config: Config
    agent: str | Agent | None
    """The agent itself; its name when worker processes run it; None: nothing is to be run."""
    files: ModelFiles
    engine: tuple[Any, Any]
    """Class and settings."""
    trainer: tuple[Any, Any] | None


async def plan(config: Config, agent: str | Agent | None, *, progress: Progress, train: bool = True, algorithm: Any = None) -> Plan:
    """Check a config and its agent, and find its model, before anything is made. Imports the plugins' libraries and the agent, in a
    thread. What `algorithm` asks and the trainer does not honour is refused."""

    def check() -> Plan:
        reach_loopback()  # before the agent is imported, which may make its client then
        engine = open_table("engines", config.engine, "engine")
        remote = bool(getattr(engine[0], "remote", False))
        if remote and train:
            raise UnsupportedSetting(
                f"The weights of engine {config.engine['name']!r} are on another server, and no trainer can change them. Use "
                "`agl rollout` or `agl serve` with it, or train a model of another engine."
            )
        if train:
            engine = engine[0], _own_weights(engine[1], config)
        trainer = open_table("trainers", config.trainer, "trainer") if train else None
        if trainer is not None and getattr(trainer[1], "total_steps", 0) is None:
            trainer = trainer[0], dataclasses.replace(trainer[1], total_steps=config.steps)
        if trainer is not None:
            able = trainer[0].offers(trainer[1])
            needs = algorithm.needs if algorithm is not None else Needs()
            loss = algorithm.loss_settings() if algorithm is not None else None
            check_capabilities(str(config.trainer["name"]), able, loss, critic=needs.critic)
            if able.critic and not needs.critic and algorithm is not None:
                raise UnsupportedSetting(
                    "trainer.critic is true, and nothing of the algorithm asks a critic; leave it out, or take advantage = 'gae' or "
                    "credit = 'learned'"
                )
        checked: str | Agent | None = None
        if agent is not None and config.runner.workers:
            checked = reference_of(agent)
            load_agent(checked, config)  # in this process too, so that a wrong name is said at once
        elif agent is not None:
            checked = load_agent(agent, config)
        progress.phase("finding model")
        files = ModelFiles(config.model, "") if remote else find_model(config.model, progress=progress.phase)
        return Plan(config, checked, files, engine, trainer)

    return await asyncio.to_thread(check)


def _own_weights(settings: Any, config: Config) -> Any:
    """The settings of an engine, with weights of its own where rollouts go on while the trainer steps."""
    ahead, copies = config.collection.max_staleness, getattr(settings, "copy_weights", True)
    if copies is None:
        return dataclasses.replace(settings, copy_weights=ahead > 0)
    if ahead and not copies:
        raise UnsupportedSetting(
            f"collection.max_staleness is {ahead}, so rollouts go on while the trainer steps, and engine.copy_weights is false: the engine "
            "would serve weights that change under it; leave engine.copy_weights out"
        )
    return settings


@asynccontextmanager
async def open_stack(
    plan: Plan,
    *,
    store: str,
    weights: Path,
    progress: Progress,
    demonstrate: Demonstrate | None = None,
    restore: Path | None = None,
) -> AsyncGenerator[Stack]:
    """Open everything of a plan; with `demonstrate` it answers the calls of training rollouts. `weights` is the folder
    through which a trainer hands its weights to an engine of another process. Heavy work happens in threads."""
    config = plan.config
    async with AsyncExitStack() as exits:
        opened = open_store(store)
        exits.push_async_callback(opened.close)
        files = plan.files
        share: Share = {}
        progress.phase("loading model")
        trainer: Trainer | None = None
        if plan.trainer is not None:
            trainer_class, trainer_settings = plan.trainer
            trainer = opened_trainer = cast(Trainer, await trainer_class.create(files, trainer_settings, share))
            exits.push_async_callback(opened_trainer.close)
            if restore is not None:
                progress.phase("restoring checkpoint")
                await opened_trainer.restore(restore)
        engine_class, engine_settings = plan.engine
        engine: Engine = await engine_class.create(files, engine_settings, share)
        exits.push_async_callback(engine.close)
        weight_sync: WeightSync | None = None
        if trainer is not None:
            await opened.publish(trainer.policy)
            weight_sync = WeightSync(trainer, engine, weights)
            if config.collection.max_staleness and weight_sync.direct and not getattr(engine_settings, "copy_weights", False):
                raise UnsupportedSetting(
                    f"collection.max_staleness is {config.collection.max_staleness}, so rollouts go on while the trainer steps, and engine "
                    f"{config.engine['name']!r} serves the trainer's own weights; leave it at 0, or use engine 'torch'"
                )
            exits.callback(weight_sync.clear)
            await weight_sync.serve(trainer.policy)
        elif files.path:
            await engine.load(engine.policy)  # an engine that starts with its first load says now what is wrong
        token = secrets.token_urlsafe(24)
        routes: tuple[Any, ...] = ()
        if config.runner.workers:
            from starlette.routing import Mount

            from agentlightning.stores.http_server import store_app

            routes = (Mount("/", app=store_app(opened, token)),)
        gateway = Gateway(opened, engine, port=config.port, extra_routes=routes, demonstrate=demonstrate, models=config.models)
        await gateway.start()
        exits.push_async_callback(gateway.stop)
        runners = asyncio.create_task(_runners(config, plan.agent, opened, gateway, engine, token))
        exits.push_async_callback(_cancelled, runners)
        yield Stack(opened, engine, trainer, weight_sync, gateway, runners)


async def _runners(config: Config, agent: str | Agent | None, store: LightningStore, gateway: Gateway, engine: Engine, token: str) -> None:
    settings: RunnerSettings = config.runner
    if agent is None:
        await asyncio.Event().wait()  # nothing is to be run
        return
    if not settings.workers:
        assert not isinstance(agent, str)
        with agent if isinstance(agent, CommandAgent) else nullcontext():
            await Runner(store, agent, gateway.llm, settings).run()
        return
    address = gateway.base_url.removesuffix("/v1").replace("://", f"://{token}@", 1)
    order = WorkerOrder(
        agent=reference_of(agent),
        store=address,
        model=engine.info.model,
        base_url=gateway.base_url,
        adapters=tuple(config.adapters),
        models=tuple(config.models),
        settings=dataclasses.asdict(settings),
        path=tuple(path or str(Path.cwd()) for path in sys.path),
        name=f"worker-{new_id()[-8:]}",
    )
    await Workers(store, order, settings).run()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
