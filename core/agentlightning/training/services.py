"""Everything that runs during a training run: store, trainer, engine, gateway and runners; opened in order, closed in reverse.

This is where a config is taken apart: each part below receives its own table, or plain values.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from agentlightning.config.policies import policy_choice
from agentlightning.config.schema import CollectionConfig, Config, RunnerSettings
from agentlightning.contracts.engine import Engine
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.contracts.policies import PolicyChoice
from agentlightning.contracts.store import LightningStore
from agentlightning.contracts.trainer import Trainer
from agentlightning.errors import ConfigError
from agentlightning.gateway import Gateway
from agentlightning.gateway.listener import is_loopback
from agentlightning.gateway.rendering.demonstration import Demonstrate
from agentlightning.registry.registry import registry
from agentlightning.runner.program import CommandAgent
from agentlightning.runner.remote import RemoteRunner, RunnerOrder, order_route
from agentlightning.runner.runner import Agent, Runner
from agentlightning.runner.worker_pool import WorkerOrder, Workers, reference_of
from agentlightning.stores.common import open_store
from agentlightning.stores.http_server import StoreServer
from agentlightning.telemetry.metrics import Metrics
from agentlightning.telemetry.requests import metrics_route
from agentlightning.training.collector import Collector
from agentlightning.training.controls import Controls
from agentlightning.training.frozen_trainer import FrozenTrainer
from agentlightning.training.plan import Plan, Plugin, TrainingPlan
from agentlightning.training.policies import frozen_policies, frozen_policy
from agentlightning.training.progress import Progress
from agentlightning.training.remote_runners import runner_command, watch_runners
from agentlightning.training.rewards.scoring import Scoring, open_scoring
from agentlightning.training.rollouts import RolloutSettings, trajectory_reader
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.step_source import ReplyLimits
from agentlightning.training.teacher import Teacher, open_teacher
from agentlightning.training.trace_export import TraceExport, open_export
from agentlightning.training.weight_sync import WeightSync
from agentlightning.types import LLM, Attempt, new_id


@dataclass(frozen=True, slots=True)
class RolloutServices:
    """The open services of rollouts without training."""

    engine: Engine
    collector: Collector
    rollouts: RolloutSettings
    scoring: Scoring | None
    """Scores the rollouts; None: the agent gives the rewards."""
    choice: PolicyChoice
    """Which policy answers a call. It has no names if the run has one policy."""
    llm: Callable[[Attempt], LLM]
    """How an attempt reaches the gateway."""


@dataclass(frozen=True, slots=True)
class Services(RolloutServices):
    """The open services of a training run."""

    store: LightningStore
    trainers: Mapping[str, Trainer]
    """By the name of the policy that each trains, in the order of the config."""
    weight_syncs: Mapping[str, WeightSync]
    """By policy, as `trainers`. Empty: the run trains no weights."""
    controls: Controls
    steps: int
    """Number of steps of the complete run."""
    collection: CollectionConfig
    metrics: Metrics
    export: TraceExport | None
    """Sends rollouts to an OpenTelemetry receiver, if there is one."""
    teacher: Teacher | None
    """Scores sampled tokens, if the algorithm asks for it."""

    @property
    def max_staleness(self) -> int:
        """Steps that may lie between sampling a token and training on it."""
        return self.collection.max_staleness

    @property
    def overlap(self) -> bool:
        """Whether rollouts continue while the trainer steps; the engine then has weights of its own."""
        return self.max_staleness > 0

    @property
    def trainer(self) -> Trainer:
        """The trainer of the first policy, or of the only one."""
        return next(iter(self.trainers.values()))

    @property
    def version(self) -> int:
        """The number of updates in the weights, of all policies together. Two equal numbers of a run mean equal weights."""
        return sum(trainer.policy.version for trainer in self.trainers.values())

    @property
    def limits(self) -> ReplyLimits:
        """The limits of the replies that every trainer takes."""
        longest = [trainer.capabilities.max_sequence_tokens for trainer in self.trainers.values()]
        return ReplyLimits(self.collection, min((tokens for tokens in longest if tokens is not None), default=None))

    def version_of(self, policy: str) -> int | None:
        """The version of the weights that train on a policy's replies; None: the policy is frozen."""
        trainer = self.trainers.get(policy) if self.choice.names else self.trainer
        return None if trainer is None else trainer.policy.version

    async def save(self, folder: Path) -> None:
        """Write a checkpoint. Each of several policies has a folder of its own in it."""
        for name, trainer in self.trainers.items():
            await trainer.save(folder / name if self.choice.names else folder)

    async def clear_cache(self) -> None:
        """Empty the engine's prefix cache before new rollouts. Cached prefixes change bits, and a resumed run starts without them."""
        if not self.overlap and not self.engine.remote:
            await self.engine.load(self.engine.policy)


@asynccontextmanager
async def open_services(
    config: Config, plan: TrainingPlan, folder: RunFolder, controls: Controls, *, restore: Path | None = None
) -> AsyncGenerator[Services]:
    """Open the services of a training run. Heavy work happens in threads. `restore` is the checkpoint of a resumed run."""
    async with AsyncExitStack() as exits:
        metrics = Metrics()
        store = metrics.store(await _open_store(exits, config, folder))
        export = await exits.enter_async_context(open_export(store, config.otlp_endpoint, plan.files.name, metrics))
        share: Share = {}
        controls.progress.phase("loading teacher")
        teacher = await exits.enter_async_context(open_teacher(plan.teacher, plan.files))
        if plan.algorithm.trains_weights:
            trainers = await _open_trainers(exits, plan, share, restore, controls.progress)
            engine = await _open_engine(exits, plan.engine, plan.files, share)
            syncs = await _open_syncs(exits, config, trainers, engine, store, folder)
            await _serve_frozen(engine, plan, store)
        else:
            controls.progress.phase("loading model")
            engine = await _open_engine(exits, plan.engine, plan.files, share)
            trainers, syncs = {"main": FrozenTrainer(engine.policy)}, {}
            if plan.files.path:
                await engine.load(engine.policy)
        await _cancel_unfinished(store)  # before the runners can claim them
        scoring = await exits.enter_async_context(open_scoring(config, store, folder.path))
        demonstrate = plan.algorithm.demonstrate
        if demonstrate is None and plan.algorithm.needs.answers and teacher is not None:
            demonstrate = teacher.demonstrate(asyncio.get_running_loop())
        outage = None if teacher is None else teacher.outage
        served = Served(store, engine, metrics, demonstrate, scoring, plan.algorithm.answered_steps, outage)
        collector, llm = await _open_runners(exits, config, plan, served, controls)
        yield Services(
            engine, collector, RolloutSettings.of(config), scoring, policy_choice(plan.policies), llm, store, trainers, syncs, controls,
            config.steps, config.collection, metrics, export, teacher,
        )  # fmt: skip


@asynccontextmanager
async def open_rollout_services(config: Config, plan: Plan, folder: RunFolder, controls: Controls) -> AsyncGenerator[RolloutServices]:
    """Open the services of rollouts without training."""
    async with AsyncExitStack() as exits:
        metrics = Metrics()
        store = metrics.store(await _open_store(exits, config, folder))
        controls.progress.phase("loading model")
        engine = await _open_engine(exits, plan.engine, plan.files, {})
        if plan.files.path and not plan.policies:
            await engine.load(engine.policy)  # an engine that starts with its first load reports its errors now
        await _serve_frozen(engine, plan, store, all_of_them=True)
        scoring = await exits.enter_async_context(open_scoring(config, store, folder.path))
        collector, llm = await _open_runners(exits, config, plan, Served(store, engine, metrics, None, scoring), controls)
        yield RolloutServices(engine, collector, RolloutSettings.of(config), scoring, policy_choice(plan.policies), llm)


async def _open_store(exits: AsyncExitStack, config: Config, folder: RunFolder) -> LightningStore:
    """Open the run's store. A new run needs an empty one, because a run trains on everything in its store."""
    store = await asyncio.to_thread(open_store, config.store or folder.store_address)
    exits.push_async_callback(store.close)
    if config.store is not None and not folder.state.exists() and (await store.list(limit=1))[0]:
        raise ConfigError(
            f"store: {store!r} has rollouts, and a run needs an empty store. Name another one. To train on recorded rollouts, set "
            "replay = {store = ...}."
        )
    return store


async def _open_syncs(
    exits: AsyncExitStack, config: Config, trainers: Mapping[str, Trainer], engine: Engine, store: LightningStore, folder: RunFolder
) -> dict[str, WeightSync]:
    """Publish the policy of each trainer, and serve it."""
    syncs: dict[str, WeightSync] = {}
    for name, trainer in trainers.items():
        trainer.mismatch_limit = config.mismatch_limit
        await store.publish(trainer.policy)
        syncs[name] = WeightSync(trainer, engine, folder.weights / name if config.policies else folder.weights)
        exits.callback(syncs[name].clear)
        await syncs[name].serve(trainer.policy)
    return syncs


async def _open_trainers(
    exits: AsyncExitStack, plan: TrainingPlan, share: Share, restore: Path | None, progress: Progress
) -> dict[str, Trainer]:
    """Open the trainer of each policy. Several policies share one model."""
    if not plan.policies:
        return {"main": await _open_trainer(exits, plan.trainer, plan.files, share, restore, progress)}
    trainers: dict[str, Trainer] = {}
    for name, plugin in plan.trainers.items():
        files, checkpoint = replace(plan.files, policy=name), None if restore is None else restore / name
        trainers[name] = await _open_trainer(exits, plugin, files, share, checkpoint, progress)
    return trainers


async def _serve_frozen(engine: Engine, plan: Plan, store: LightningStore, *, all_of_them: bool = False) -> None:
    """Have the engine serve the frozen policies. With `all_of_them` the others too, as the model itself: nothing trains them."""
    policies = frozen_policies(plan.policies, plan.files)
    frozen = {policy.name for policy in policies}
    rest = [frozen_policy(name, plan.files) for name in plan.policies if name not in frozen] if all_of_them else []
    for policy in [*rest, *policies]:
        await engine.load(policy)
        await store.publish(policy)


async def _open_trainer(
    exits: AsyncExitStack, plugin: Plugin, files: ModelFiles, share: Share, restore: Path | None, progress: Progress
) -> Trainer:
    progress.phase("loading model")
    trainer: Trainer = await plugin[0].create(files, plugin[1], share)
    exits.push_async_callback(trainer.close)
    if restore is not None:
        progress.phase("restoring checkpoint")
        await trainer.restore(restore)
    return trainer


async def _open_engine(exits: AsyncExitStack, plugin: Plugin, files: ModelFiles, share: Share) -> Engine:
    engine: Engine = await plugin[0].create(files, plugin[1], share)
    exits.push_async_callback(engine.close)
    return engine


async def _cancel_unfinished(store: LightningStore) -> None:
    """Cancel the rollouts of a step that a stopped run did not finish. The resumed run repeats the step."""
    states, _ = await store.list(status=["queued", "running"], limit=1_000_000)
    ids = [state.rollout.id for state in states if state.rollout.mode != "production"]
    if ids:
        await store.cancel(ids)


class Served(NamedTuple):
    """The parts that a run's gateway serves and measures, and that score its rollouts."""

    store: LightningStore
    engine: Engine
    metrics: Metrics
    demonstrate: Demonstrate | None
    """Answers training calls in the policy's place."""
    scoring: Scoring | None
    demonstrated_steps: int | None = None
    """In how many first steps; None: in all."""
    outage: asyncio.Future[None] | None = None
    """Of the teacher: its error ends the run."""


async def _open_runners(
    exits: AsyncExitStack, config: Config, plan: Plan, served: Served, controls: Controls
) -> tuple[Collector, Callable[[Attempt], LLM]]:
    """Start a gateway and runners; return their collector, and how an attempt reaches the gateway."""
    token, runner = os.environ.get("AGL_TOKEN") or secrets.token_urlsafe(24), config.runner
    store, engine, metrics, demonstrate, scoring, demonstrated_steps, outage = served
    server, choice = StoreServer(store, token), policy_choice(plan.policies)
    order = order_route(server, RunnerOrder(model=engine.info.model, models=config.models, policies=choice.names, settings=runner))
    remote_routes = [*server.routes, order] if runner.workers or runner.elsewhere else []
    gateway = Gateway(
        store, engine, host=config.host, port=config.port, demonstrate=demonstrate, demonstrated_steps=demonstrated_steps,
        models=config.models, policies=choice, rendering=plan.rendering,
        extra_routes=[metrics_route(metrics, store, server.admits), *remote_routes], max_body=config.max_body_mb * 2**20, metrics=metrics,
    )  # fmt: skip
    await gateway.start()
    exits.push_async_callback(gateway.stop)
    remote = remote_runner(config, plan.agent, token, gateway.base_url) if runner.elsewhere and plan.agent is not None else None
    if remote is not None and runner.remote:
        watch = asyncio.create_task(watch_runners(server, runner.lease, runner_command(remote), controls.progress.message))
        exits.push_async_callback(_cancel, watch)
    if remote is not None and runner.name != "local":
        runs = registry().load("runners", runner.name)(remote, runner)
    elif runner.workers and isinstance(plan.agent, str):
        runs = Workers(store, _worker_order(config, plan.agent, gateway, engine.info.model, token), runner).run()
    else:
        runs = _run_here(None if remote is not None else plan.agent, store, gateway, runner)
    runners = asyncio.create_task(runs if outage is None else _until(outage, runs))
    exits.push_async_callback(_cancel, runners)
    return Collector(store, runners, trajectory_reader(config), controls, scoring), gateway.llm


def remote_runner(config: Config, agent: str | Agent, token: str, base_url: str) -> RemoteRunner:
    """Return what a runner elsewhere must know. `base_url`: the gateway's own address."""
    own = base_url.removesuffix("/v1")
    host = own if is_loopback(config.host) else f"http://{socket.gethostname()}:{own.rpartition(':')[2]}"
    return RemoteRunner(
        store=(config.address or host).rstrip("/").replace("://", f"://{token}@", 1),
        agent=None if config.command is not None else reference_of(agent),
        command=config.command,
        reward=config.program_reward,
        adapters=config.adapters,
    )


def _worker_order(config: Config, agent: str, gateway: Gateway, model: str, token: str) -> WorkerOrder:
    return WorkerOrder(
        agent=agent,
        store=gateway.base_url.removesuffix("/v1").replace("://", f"://{token}@", 1),
        model=model,
        base_url=gateway.base_url,
        adapters=tuple(config.adapters),
        models=tuple(config.models),
        policies=tuple(config.policies),
        settings=config.runner,
        path=tuple(path or str(Path.cwd()) for path in sys.path),
        name=f"worker-{new_id()[-8:]}",
    )


async def _run_here(agent: str | Agent | None, store: LightningStore, gateway: Gateway, settings: RunnerSettings) -> None:
    if agent is None or isinstance(agent, str):
        await asyncio.Event().wait()  # the run has no rollouts of its own, or runners elsewhere have them
        return
    with agent if isinstance(agent, CommandAgent) else nullcontext():
        await Runner(store, agent, gateway.llm, settings).run()


async def _until(outage: asyncio.Future[None], runs: Coroutine[Any, Any, None]) -> None:
    """Run the runners. Raises the error of an outage as soon as there is one."""
    running = asyncio.create_task(runs)
    try:
        await asyncio.wait([running, outage], return_when=asyncio.FIRST_COMPLETED)
        await (outage if outage.done() else running)
    finally:
        await _cancel(running)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
