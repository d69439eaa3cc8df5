"""`agl serve`: a gateway and a store that stay up. It serves a model as an OpenAI endpoint, and the store to runners elsewhere."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from starlette.routing import BaseRoute

from agentlightning.config.models import best_weights, find_model, find_run, is_model
from agentlightning.config.parts import Part
from agentlightning.config.policies import policy_choice
from agentlightning.config.schema import Config, load_config
from agentlightning.contracts.engine import Engine
from agentlightning.contracts.model import ModelFiles
from agentlightning.contracts.policies import PolicyChoice
from agentlightning.contracts.rendering import RenderingChoices, RenderingSettings, saved_rendering
from agentlightning.contracts.store import LightningStore
from agentlightning.gateway import Gateway
from agentlightning.gateway.call import ONE_POLICY
from agentlightning.gateway.rendering.load import make_rendering
from agentlightning.runner.rollout import DEFAULT_STORE
from agentlightning.serving.playground import Playground
from agentlightning.serving.prompts import served_prompts
from agentlightning.stores.common import open_store
from agentlightning.stores.http_server import StoreServer
from agentlightning.telemetry.metrics import Metrics
from agentlightning.telemetry.requests import metrics_route
from agentlightning.training.policies import frozen_policy
from agentlightning.training.progress import Progress
from agentlightning.training.recorded import run_rendering
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.trace_export import open_export
from agentlightning.types import Policy


class ServedModel(NamedTuple):
    """The model to serve, and the engine that serves it."""

    files: ModelFiles
    engine: dict[str, object]
    """The `[engine]` table."""
    policy: Policy | None
    """The trained version; None: the model as it is."""
    rendering: RenderingSettings
    weights: str = ""
    """Of a run: the step, and why this one."""
    run: RunFolder | None = None
    """The run that trained it."""
    base: Callable[[], ServedModel] | None = None
    """Finds the model before training (blocking). None: this is it, or there is none."""
    policies: Sequence[Policy] = ()
    """Of a run with several."""
    choice: PolicyChoice = ONE_POLICY
    """Which of them answers a call."""
    prompts: Mapping[str, str] = {}
    """Of a run, by name."""


class Address(NamedTuple):
    """Where the gateway listens, and the largest body in bytes that it takes there."""

    host: str
    port: int
    max_body: int


class Page(Protocol):
    """The page that shows the recorded calls."""

    routes: Sequence[BaseRoute]

    def stop(self) -> None:
        """End its streams, so that the server can stop."""
        ...

    async def close(self) -> None:
        """Close the stores that it opened."""
        ...


class Shown(NamedTuple):
    """What the page shows."""

    address: str
    """Of the store."""
    store: LightningStore
    token: str
    run: RunFolder | None
    playground: Playground | None


MakePage: TypeAlias = Callable[[Shown], Page]


@dataclass(frozen=True, slots=True)
class Served:
    """The addresses that clients need."""

    base_url: str
    model: str
    """Empty: the upstream's choice."""
    token: str
    store: str
    """Address of the store for other processes."""
    weights: str = ""
    """Of a run: the step, and why this one."""
    policies: Sequence[str] = ()
    """Names to ask for, where a run has several policies."""
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of a run, by name."""


def serve(
    model: ServedModel, address: Address, *, store: str | None, progress: Progress, ready: Callable[[Served], None], page: MakePage
) -> None:
    """Serve a model and the store that its calls are recorded in, until Ctrl-C. `ready` is called once, with the addresses.

    The token is `AGL_TOKEN`, or a new one. Records go to `store`, else to `AGL_STORE`, else to `./agl.db`. A run's store stays as it is.
    `page` makes the page that shows the store, and the run of the model.
    """

    async def serve_until_stopped() -> None:
        async with _serving(model, address, store, progress, page) as served:
            ready(served)
            await until_interrupted()

    asyncio.run(serve_until_stopped())


@asynccontextmanager
async def _serving(model: ServedModel, address: Address, store: str | None, progress: Progress, page: MakePage) -> AsyncGenerator[Served]:
    part = Part.parse("engines", model.engine, "engine")
    settings = part.make()
    token = os.environ.get("AGL_TOKEN") or secrets.token_urlsafe(24)
    async with AsyncExitStack() as stack:
        if model.files.path:
            await asyncio.to_thread(make_rendering, model.files.name, model.files.path, model.rendering)  # before the weights load
        metrics = Metrics()
        records = store or os.environ.get("AGL_STORE") or DEFAULT_STORE
        opened = metrics.store(open_store(records))
        stack.push_async_callback(opened.close)
        export = await stack.enter_async_context(open_export(opened, None, model.files.name, metrics))
        opened.finished = None if export is None else export.finished
        progress.phase("loading model")
        engine: Engine = await part.target.create(model.files, settings, {})
        stack.push_async_callback(engine.close)
        if model.files.path:
            for policy in model.policies or [model.policy or engine.policy]:  # a run's trained version, so that records name it
                await engine.load(policy)
        server, playground = StoreServer(opened, token), _playground(model, engine, part.target, settings)
        shown = page(Shown(records, opened, token, model.run, playground))
        stack.push_async_callback(shown.close)
        if playground is not None:
            stack.push_async_callback(playground.close)
        routes = [*server.routes, metrics_route(metrics, opened, server.admits), *shown.routes]
        gateway = Gateway(
            opened, engine, host=address.host, port=address.port, max_body=address.max_body, token=token, extra_routes=routes,
            rendering=model.rendering, metrics=metrics, policies=model.choice, prompts=model.prompts,
        )  # fmt: skip
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        stack.callback(shown.stop)
        progress.end()
        store_address = gateway.base_url.removesuffix("/v1").replace("://", f"://{token}@", 1)
        names, prompts = model.choice.names, model.prompts
        yield Served(gateway.base_url, engine.info.model, token, store_address, model.weights, names, prompts)


def _playground(model: ServedModel, engine: Engine, kind: type[Engine], settings: Any) -> Playground | None:
    """The playground of a served model. None: another server has the model."""
    if not model.files.path:
        return None
    find = model.base

    async def open_base() -> tuple[Engine, RenderingSettings]:
        assert find is not None
        base = await asyncio.to_thread(find)
        other = await kind.create(base.files, settings, {})
        await other.load(other.policy)
        return other, base.rendering

    return Playground(engine, model.rendering, None if find is None else open_base, weights=model.weights)


def served_model(name: str, progress: Progress, choices: RenderingChoices | None = None) -> ServedModel:
    """Return the best weights of a run with its own engine, or any other model with the default engine. `choices` change how messages
    become tokens."""
    choices = choices or RenderingChoices()
    if is_model(name) or (run := find_run(name)) is None:
        progress.phase("finding model")
        files = find_model(name, progress=progress.phase)
        return ServedModel(files, {"name": "torch"}, None, choices.over(saved_rendering(Path(files.path))))
    folder = RunFolder.open(run)
    config, result = load_config(folder.config), folder.read_result()
    if "policies" in result:
        return _several_policies(folder, config, result, choices, progress)
    if "prompts" in result and "checkpoint" not in result:
        return _searched(folder, config, result, choices, progress)
    path = best_weights(run)
    policy = Policy(version=int(result["policy_version"]), base=config.model, uri=f"file:{path}")
    trained_as, weights = _model_name(config), _why(result)
    trained, rendering = result.get("policy_step") != 0, run_rendering(folder, path)

    def base() -> ServedModel:
        files = find_model(config.model)
        settings = choices.over(config.rendering(files.path))
        return ServedModel(ModelFiles(trained_as, files.path), dict(config.engine), None, settings)

    files, prompts = ModelFiles(trained_as, str(path)), served_prompts(run, config)
    served = ServedModel(files, dict(config.engine), policy, choices.over(rendering), weights, folder, prompts=prompts)
    return served._replace(base=base) if trained else served


def _model_name(config: Config) -> str:
    """The name of a run's model, for which its agents ask."""
    return Path(config.model).name if Path(config.model).exists() else config.model


def _why(result: Mapping[str, Any]) -> str:
    """The step of a run's weights, and why this one."""
    return f"step {result['policy_step']}. {result['policy_reason']}" if "policy_reason" in result else ""


def _several_policies(
    run: RunFolder, config: Config, result: Mapping[str, Any], choices: RenderingChoices, progress: Progress
) -> ServedModel:
    """The model of a run with several policies, and the best weights of each."""
    progress.phase("finding model")
    files = find_model(config.model, progress=progress.phase)
    files = ModelFiles(_model_name(config), files.path)
    policies = list[Policy]()
    for name, policy in result["policies"].items():
        weights = str(best_weights(run.path, name)) if "checkpoint" in policy else None
        policies.append(frozen_policy(name, files, weights, int(policy["version"])))
    rendering = choices.over(config.rendering(files.path))
    served = ServedModel(files, dict(config.engine), None, rendering, _why(result), run, prompts=served_prompts(run.path, config))
    base = ServedModel(files, dict(config.engine), None, rendering)  # as the model itself
    return served._replace(policies=policies, choice=policy_choice(config.policies), base=lambda: base)


def _searched(run: RunFolder, config: Config, result: Mapping[str, Any], choices: RenderingChoices, progress: Progress) -> ServedModel:
    """The model of a search for prompts, which trained no weights, where the model is not a folder here: on a hub, or on a server."""
    prompts = served_prompts(run.path, config)
    if Part.parse("engines", config.engine, "engine").target.remote:
        return ServedModel(ModelFiles(config.model, ""), dict(config.engine), None, RenderingSettings(), "", run, prompts=prompts)
    progress.phase("finding model")
    files = find_model(config.model, progress=progress.phase)
    rendering = choices.over(config.rendering(files.path))
    return ServedModel(files, dict(config.engine), None, rendering, _why(result), run, prompts=prompts)


def upstream_model(url: str, *, key_env: str | None = None, name: str | None = None) -> ServedModel:
    """Return the model of another server. `key_env` is the environment variable of its key; without a `name`, agents choose the model."""
    table: dict[str, object] = {"name": "upstream", "url": url, **({"key_env": key_env} if key_env is not None else {})}
    return ServedModel(ModelFiles(name or "", ""), table, None, RenderingSettings())


async def until_interrupted() -> None:
    """Return at SIGINT or SIGTERM."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
