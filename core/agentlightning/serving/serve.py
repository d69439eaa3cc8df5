"""`agl serve`: a gateway and a store that stay up: a model as an OpenAI endpoint (a trained one, or that of another server), a store for
runners elsewhere."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from starlette.routing import Mount

from agentlightning.config.models import find_model
from agentlightning.config.schema import load_config, open_table
from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ConfigError, RunError
from agentlightning.gateway import Gateway
from agentlightning.runner.rollout import DEFAULT_STORE
from agentlightning.stores.common import open_store
from agentlightning.stores.http_server import store_app
from agentlightning.training.progress import Progress, Silent
from agentlightning.training.run_folder import RunFolder
from agentlightning.types import Policy

What: TypeAlias = tuple[ModelFiles, dict[str, object], Policy | None]
"""Model files, engine settings and policy."""


@dataclass(frozen=True, slots=True)
class Served:
    """What is up, for whoever connects."""

    base_url: str
    model: str
    """Empty: whichever the upstream has."""
    token: str
    store: str
    """Address of the store for other processes."""


def serve(
    run: Path | None = None,
    *,
    model: str | None = None,
    upstream: str | None = None,
    upstream_key_env: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    store: str | None = None,
    progress: Progress | None = None,
    ready: Callable[[Served], None] = lambda served: None,
) -> None:
    """Serve until Ctrl-C, with the store that calls are recorded in: the best weights of a run, or a model by name; or forward to an
    `upstream`, the base URL of a server whose key stands in the environment variable `upstream_key_env`, and whose model is `model`
    (absent: the one that the agent asks for).

    The token is `AGL_TOKEN`, or a new one that `ready` is told. Records go to `store`, else `AGL_STORE`, else `./agl.db`: a run's own store
    is left as it is.
    """
    progress = progress or Silent()
    if upstream is None:
        what = what_to_serve(run, model, progress)
    elif run is not None:
        raise ConfigError("`agl serve` serves either a run or an upstream (`agl serve --upstream URL`)")
    else:
        settings: dict[str, object] = {"url": upstream, **({"key_env": upstream_key_env} if upstream_key_env is not None else {})}
        what = ModelFiles(model or "", ""), {"name": "upstream", **settings}, None
    asyncio.run(_serve(what, host, port, store, progress, ready))


async def _serve(what: What, host: str, port: int, store: str | None, progress: Progress, ready: Callable[[Served], None]) -> None:
    files, engine_table, policy = what
    token = os.environ.get("AGL_TOKEN") or secrets.token_urlsafe(24)
    opened = open_store(store or os.environ.get("AGL_STORE") or DEFAULT_STORE)
    try:
        plugin, settings = open_table("engines", engine_table, "engine")
        progress.phase("loading model")
        engine = await plugin.create(files, settings, {})
        try:
            if files.path:
                await engine.load(policy or engine.policy)  # of a run the version that was trained, so that what is recorded says so
            gateway = Gateway(opened, engine, host=host, port=port, token=token, extra_routes=(Mount("/", app=store_app(opened, token)),))
            await gateway.start()
            try:
                progress.end()
                address = gateway.base_url.removesuffix("/v1").replace("://", f"://{token}@", 1)
                ready(Served(gateway.base_url, engine.info.model, token, address))
                await _until_interrupted()
            finally:
                await gateway.stop()
        finally:
            await engine.close()
    finally:
        await opened.close()


def what_to_serve(run: Path | None, model: str | None, progress: Progress) -> What:
    """Model files, engine settings and policy: of a run, or of a model by name with the default engine."""
    if (run is None) == (model is None):
        raise ConfigError("`agl serve` serves either a run (`agl serve RUN`) or a model (`agl serve --model NAME`)")
    if model is not None:
        progress.phase("finding model")
        return find_model(model, progress=progress.phase), {"name": "torch"}, None
    assert run is not None
    folder = RunFolder.open(run)
    result = folder.read_result() if folder.result.exists() else {}
    if "checkpoint" not in result:
        raise RunError(f"run {folder.name} has no trained weights yet; `agl train --resume {folder.name}` goes on with it")
    config = load_config(folder.config)
    path = folder.path / str(result["checkpoint"])
    policy = Policy(version=int(result["policy_version"]), base=config.model, uri=f"file:{path}")
    name = Path(config.model).name if Path(config.model).is_dir() else config.model  # as the agent was trained to call it
    return ModelFiles(name, str(path)), dict(config.engine), policy


async def _until_interrupted() -> None:
    """Return at SIGINT or SIGTERM."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
