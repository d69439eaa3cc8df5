"""Serves through vLLM: token ids in and out, over one or several servers that share the work.

Everything runs in the engine's own thread and event loop, so you can call it from any loop. If a server dies, its replacement resumes the
in-flight requests: sampled tokens stay, and new ones are conditioned on them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from agentlightning.contracts.engine import Chunk, EngineInfo, check_request
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.contracts.served_policies import MAIN, MultiPolicyEngine
from agentlightning.errors import ConfigError, EngineError
from agentlightning.training.weight_sync import folder_of
from agentlightning.types import IntArray, Policy, Sampling, ints
from agentlightning_vllm.environment import Environment, find_environment
from agentlightning_vllm.replica import Replica
from agentlightning_vllm.reply import Request, sample
from agentlightning_vllm.server import Fleet, Order
from agentlightning_vllm.settings import VllmSettings

T = TypeVar("T")
log = logging.getLogger("agentlightning.vllm")

REMEMBERED = 100_000
"""Number of rollouts with a remembered replica."""


class VllmEngine(MultiPolicyEngine):
    """See `agentlightning.contracts.engine.Engine`. The servers start with the first load."""

    Settings = VllmSettings

    @classmethod
    def check_settings(cls, settings: VllmSettings) -> None:
        """See `Engine.check_settings`. Finds vLLM."""
        environment_of(settings)

    @classmethod
    async def create(cls, model: ModelFiles, settings: VllmSettings, share: Share) -> VllmEngine:
        """Find vLLM and read the model's config. Raises `ConfigError`."""
        return await asyncio.to_thread(cls._open, model, settings)

    @classmethod
    def _open(cls, model: ModelFiles, settings: VllmSettings) -> VllmEngine:
        context, vocabulary = _shape(model)
        if settings.context is not None and settings.context > context:
            raise ConfigError(f"engine.context is {settings.context}, but {model.name!r} has a context of {context}. Lower it.")
        context = settings.context or context
        environment = environment_of(settings)
        info = EngineInfo(model.name, model.path, context, frozenset({"file"}))
        fleet = Fleet(
            order=None if environment is None else Order(settings, environment, model.path, context),
            key=os.environ[settings.key_env] if settings.key_env is not None else None,
            base=Policy(version=0, base=model.name, uri=f"{'file' if Path(model.path).is_dir() else 'hub'}:{model.path}"),
            silence=settings.silence,
            weight_check_limit=settings.weight_check_limit,
            packs_head=environment is None or environment.cpu,
            logs=Path(tempfile.mkdtemp(prefix="agl-vllm-")),
        )
        return cls(info, vocabulary, settings, fleet)

    def __init__(self, info: EngineInfo, vocabulary: int, settings: VllmSettings, fleet: Fleet) -> None:
        self.info, self._base = info, fleet.base
        self.logs = fleet.logs
        """Return the folder of the servers' logs while the engine is open. After an error, the logs stay."""
        self._vocabulary, self._settings = vocabulary, settings
        urls: list[str | None] = [url.rstrip("/").removesuffix("/v1") for url in settings.urls]
        self._loop = asyncio.new_event_loop()
        self.replicas = [Replica(number, fleet, url) for number, url in enumerate(urls or [None] * settings.replicas)]
        self._policies: dict[str, Policy] = {MAIN: fleet.base}
        """Replaced as a whole, because other threads read it."""
        # Only the engine's loop reads and writes everything below.
        self._home: OrderedDict[str, Replica] = OrderedDict()
        self._held = 0
        self._active = 0
        self._changed = asyncio.Condition()
        self._loading = asyncio.Lock()
        self._failed = self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="agl-vllm-engine", daemon=True)
        self._thread.start()

    @property
    def served(self) -> Mapping[str, Policy]:
        """See `MultiPolicyEngine.served`."""
        return self._policies

    async def generate_as(
        self, policy: str, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None
    ) -> AsyncIterator[Chunk]:
        """See `MultiPolicyEngine.generate_as`."""
        prompt, limit = ints(prompt_ids), check_request(self.info, self._vocabulary, prompt_ids, sampling)
        items: asyncio.Queue[Chunk | BaseException] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(item: Chunk | BaseException) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(items.put_nowait, item)

        async def work() -> None:
            try:
                await self._generate(Request(policy, prompt, sampling, limit, put), rollout)
            except Exception as error:
                put(error if isinstance(error, EngineError) else EngineError(f"vLLM: {type(error).__name__}: {error}"))

        task = self._start(work())
        try:
            while True:
                item = await items.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finish is not None:
                    return
        finally:
            task.cancel()  # closes the request, which aborts it in the server

    async def load(self, policy: Policy) -> dict[str, float]:
        """See `Engine.load`.

        `file:` is a folder from `Trainer.export` or `save_pretrained`. A named policy is a LoRA adapter, or the model itself. The metric
        `weight_check_diff` is the mean difference between the servers' and the trainer's log-probabilities, in nats per token, on the
        tokens of the weight check.
        """
        return await self._do(self._load(policy))

    async def pause(self) -> None:
        """See `Engine.pause`. Each call needs a `resume`."""
        await self._do(self._pause())

    async def resume(self) -> None:
        await self._do(self._resume())

    async def close(self) -> None:
        """Stop this engine's own servers, never those of `urls`."""
        if self._closed:
            return
        self._closed = True
        await self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()
        if self._failed and any(self.logs.iterdir()):
            log.warning("The logs of the vLLM servers stay in %s.", self.logs)
        else:
            shutil.rmtree(self.logs, ignore_errors=True)

    def _start(self, work: Coroutine[Any, Any, T]) -> Any:
        if self._loop.is_closed():
            work.close()
            raise EngineError("The engine is closed. Create a new one.")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it in the engine's loop. It finishes even if its caller is cancelled, because nobody can use half a load."""
        return await asyncio.shield(asyncio.wrap_future(self._start(work)))

    # Below: the engine's loop.

    async def _generate(self, request: Request, rollout: str | None) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._held)
            self._active += 1
        replica = self._choose(rollout)
        replica.active += 1
        try:
            await sample(replica, request, lambda: [*self._policies.values()])
        except EngineError:
            self._failed = True
            raise
        finally:
            replica.active -= 1
            self._active -= 1
            async with self._changed:
                self._changed.notify_all()

    def _choose(self, rollout: str | None) -> Replica:
        """Return the replica of the rollout's earlier calls. A new rollout goes to the one with the fewest in-flight requests."""
        replica = self._home.get(rollout) if rollout is not None else None
        if replica is None:
            replica = min(self.replicas, key=lambda replica: (replica.active, replica.rollouts, replica.number))
            replica.rollouts += 1
        if rollout is not None and len(self.replicas) > 1:
            self._home[rollout] = replica
            self._home.move_to_end(rollout)
            if len(self._home) > REMEMBERED:
                self._home.popitem(last=False)
        return replica

    async def _load(self, policy: Policy) -> dict[str, float]:
        async with self._loading:
            policies = self._with(policy)
            await self._hold()
            try:
                loads = await asyncio.gather(*(replica.load([*policies.values()]) for replica in self.replicas), return_exceptions=True)
                differences: list[float] = []
                for load in loads:
                    if isinstance(load, BaseException):
                        self._failed = True
                        raise load
                    differences += [load[policy.name]] if policy.name in load else []
                self._policies = policies
                return {"weight_check_diff": max(differences)} if differences else {}
            finally:
                await self._release()

    def _with(self, policy: Policy) -> dict[str, Policy]:
        """Return the served policies with this one among them. Raises `EngineError` if it cannot be served beside them."""
        alone = MAIN in self._policies
        if (policy.name == MAIN) == alone:
            others = self._policies
        elif self._policies == {MAIN: self._base}:
            others = {}
        else:
            names = ", ".join(map(repr, self._policies))
            raise EngineError(f"vLLM serves {names} and cannot add policy {policy.name!r}, because 'main' has no others. Start a new run.")
        if policy.name != MAIN and policy.kind == "full" and folder_of(policy) != Path(self.info.path):
            raise EngineError(
                f"Policy {policy.name!r} has the full model in {str(folder_of(policy))!r}, but named policies are adapters over "
                f"{self.info.model!r}. Use a LoRA adapter of this model."
            )
        return {**others, policy.name: policy}

    async def _pause(self) -> None:
        await self._hold()
        if self._settings.sleep:
            await asyncio.gather(*(replica.sleep() for replica in self.replicas))

    async def _resume(self) -> None:
        if self._settings.sleep and self._held == 1:
            await asyncio.gather(*(replica.wake() for replica in self.replicas))
        await self._release()

    async def _hold(self) -> None:
        """Hold new requests and wait for the in-flight ones."""
        async with self._changed:
            self._held += 1
            await self._changed.wait_for(lambda: not self._active)

    async def _release(self) -> None:
        async with self._changed:
            self._held = max(0, self._held - 1)
            self._changed.notify_all()

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self.replicas), return_exceptions=True)


def environment_of(settings: VllmSettings) -> Environment | None:
    """Return the environment of the engine's own servers, None with `urls`. Raises `ConfigError` if no vLLM fits the settings."""
    if settings.urls:
        return None
    environment = find_environment(settings.python)
    if environment.cpu:
        settings.check_cpu()
    return environment


def _shape(model: ModelFiles) -> tuple[int, int]:
    """Return a model's context length and vocabulary size."""
    from transformers import AutoConfig

    auto: Any = AutoConfig
    try:
        config = auto.from_pretrained(model.path).get_text_config()
        return int(config.max_position_embeddings), int(config.vocab_size)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"Model {model.name!r} cannot be read from {model.path!r}: {error}. Expected a folder or hub id for transformers."
        ) from error
