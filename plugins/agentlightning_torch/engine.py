"""Serves the weights of this process: continuous batching over concurrent requests, in a thread of the engine's own.

A request joins between two decode steps; a prompt that several share is prefilled once; what a conversation or a group has
computed is copied, never computed twice, until the weights change. Tokens are stamped with the version that made them.

transformers' own continuous batching (`generate_batch`, 5.23) was tried first. It has abort and per-token log-probabilities, but one
seed for the manager and none for a request, log-probabilities of the truncated distribution, one `do_sample` for all (no greedy
beside sampled), and no moment between steps at which a trainer may change the weights and old prefixes are dropped. On 16 requests
of 48 to 64 tokens with SmolLM2 (one thread of a CPU; benchmarks/performance/engine.py): 20 tokens/s, left-padded `generate` 67, this
engine 80, one request at a time 12.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch

from agentlightning.contracts.engine import Chunk, Engine, EngineInfo, EngineSettings, check_request
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.errors import ConfigError, EngineError
from agentlightning.types import IntArray, Policy, Sampling, floats, ints
from agentlightning_torch.sampler import Counts, Event, Reply, Sampler
from agentlightning_torch.slots import probe
from agentlightning_torch.weights import Weights, get_weights, is_loaded


@dataclass(frozen=True, kw_only=True)
class Settings(EngineSettings):
    """Settings of the torch engine. `device` and `dtype` are those of the weights, which the trainer shares."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`."""
    dtype: str = "auto"
    """`auto` (bfloat16 on a GPU, else float32), `float32`, `bfloat16`, `float16`, `float64`."""
    max_batch: int = 32
    """Replies decoded together at most; others wait."""
    memory_gb: float | None = None
    """For keys and values, those kept for a next turn included. None: 2 on a CPU, 30 % of a GPU's memory."""
    copy_weights: bool | None = None
    """Whether to hold a copy of the weights, so that replies go on while the trainer steps; it takes as much memory again. Absent: where
    `collection.max_staleness` is above 0."""

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ConfigError(f"engine.max_batch is {self.max_batch}; it must be at least 1")
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise ConfigError(f"engine.memory_gb is {self.memory_gb}; it must be above 0, or absent")

    def memory(self, device: torch.device) -> int:
        """In bytes. Does not depend on what is free just now, so that two runs keep the same."""
        if self.memory_gb is not None:
            return int(self.memory_gb * 2**30)
        return int(0.3 * torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 2 * 2**30


class Request(Reply):
    """A reply and the loop that waits for it."""

    def __init__(self, prompt: IntArray, sampling: Sampling, limit: int) -> None:
        super().__init__(prompt, sampling, limit)
        self.loop = asyncio.get_running_loop()
        self.ready = asyncio.Event()
        self.inbox: deque[Event | EngineError] = deque()
        """Written and read in `loop` only."""


class TorchEngine(Engine):
    """See `Engine`."""

    Settings = Settings

    @classmethod
    async def create(cls, model: ModelFiles, settings: Settings, share: Share) -> TorchEngine:
        """Load the model, or take the weights that the run's trainer has loaded. Raises `ConfigError` where it cannot be served."""
        return await asyncio.to_thread(cls._open, model, settings, share)

    @classmethod
    def _open(cls, model: ModelFiles, settings: Settings, share: Share) -> TorchEngine:
        shared = is_loaded(share, model)
        weights = get_weights(share, model, device=settings.device, dtype=settings.dtype)
        return cls(weights.copy(), settings, source=weights) if settings.copy_weights and shared else cls(weights, settings)

    def __init__(self, weights: Weights, settings: Settings | None = None, *, source: Weights | None = None) -> None:
        """`source`: the trainer's weights, of which `weights` are a copy; None: they are the trainer's, or nobody trains them."""
        settings = settings or Settings()
        self._weights, self._source = weights, source
        with weights.lock:
            config = weights.model.config.get_text_config()
            shape = probe(weights.model, weights.files.name)
        self._vocabulary: int = config.vocab_size
        self.info = EngineInfo(weights.files.name, weights.files.path, config.max_position_embeddings, frozenset({"memory", "file"}))
        memory = settings.memory(weights.device)
        self._sampler = Sampler(weights, shape, max_batch=settings.max_batch, memory=memory)
        self._wake = threading.Condition()
        # Under `_wake`: what other threads ask of the engine's thread.
        self._new: deque[Request] = deque()
        self._dropped: deque[Request] = deque()
        self._drained: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._held = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="agl-torch-engine", daemon=True)
        self._thread.start()

    @property
    def policy(self) -> Policy:
        """What is being served now."""
        return self._weights.policy

    @property
    def counts(self) -> Counts:
        """Tokens prefilled, copied and decoded so far."""
        return self._sampler.counts

    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        """See `Engine.generate`."""
        request = Request(np.asarray(prompt_ids), sampling, check_request(self.info, self._vocabulary, prompt_ids, sampling))
        self._tell(lambda: self._new.append(request))
        ended = False
        try:
            while not ended:
                await request.ready.wait()
                request.ready.clear()
                while request.inbox:
                    for chunk in _chunks(request.inbox):
                        ended = chunk.finish is not None
                        yield chunk
        except EngineError:
            ended = True
            raise
        finally:
            if not ended:
                self._tell(lambda: self._dropped.append(request), late=True)

    async def load(self, policy: Policy) -> dict[str, float]:
        """See `Engine.load`. `memory:` is what the trainer has done to the shared weights, or to those that these are a copy of: a copy is
        brought up to date between two tokens, and replies under way go on. `file:` is a folder of `save_pretrained`."""
        source = self._source
        if source is not None and policy == source.policy != self.policy:
            await asyncio.to_thread(self._weights.take, source)
        else:
            await self._when_drained(lambda: self._load(policy))
        return {}

    async def pause(self) -> None:
        """See `Engine.pause`. Requests that are still waiting for a place are held as well. Each call needs its own `resume`."""
        with self._wake:
            self._held += 1
        await self._when_drained(lambda: None)

    async def resume(self) -> None:
        with self._wake:
            self._held = max(0, self._held - 1)
            self._wake.notify()

    async def close(self) -> None:
        """Stop. Replies under way end with `EngineError`."""
        self._tell(lambda: setattr(self, "_closed", True), late=True)
        await asyncio.to_thread(self._thread.join)

    def _tell(self, change: Callable[[], Any], *, late: bool = False) -> None:
        with self._wake:
            if self._closed and not late:
                raise EngineError("the engine is closed")
            change()
            self._wake.notify()

    async def _when_drained(self, action: Callable[[], None]) -> None:
        """Run something in the engine's thread once no reply is under way; none joins before."""
        done: Future[None] = Future()
        self._tell(lambda: self._drained.append((action, done)))
        await asyncio.shield(asyncio.wrap_future(done))

    def _load(self, policy: Policy) -> None:
        weights, scheme = self._weights, policy.uri.partition(":")[0]
        with weights.lock:
            if scheme == "file" and policy != weights.policy:
                weights.load_state(unquote(policy.uri.removeprefix("file:").removeprefix("//")))
                weights.policy = policy
            elif scheme == "memory" and policy != weights.policy:
                raise EngineError(f"asked to serve {policy}, but the weights in memory are {weights.policy}; did the trainer's step end?")
            elif scheme not in ("file", "memory"):
                raise EngineError(f"the torch engine cannot load {policy.uri!r}; expected `file:` or `memory:`")
            self._sampler.forget()

    # Below: the engine's thread.

    def _run(self) -> None:
        while self._listen():
            try:
                while self._dropped:
                    self._sampler.drop(self._dropped.popleft())
                events = self._sampler.step(admit=not (self._held or self._drained))
            except Exception as error:
                self._send([(reply, _failure(error)) for reply in self._sampler.fail()])
            else:
                self._send([(event.reply, event) for event in events])
        self._send([(reply, EngineError("the engine was closed")) for reply in self._sampler.fail()])
        for _, done in self._drained:
            done.set_exception(EngineError("the engine was closed"))

    def _listen(self) -> bool:
        """Wait until there is something to do, take in what was asked. False: the engine is closed."""
        sampler = self._sampler
        while True:
            with self._wake:
                while self._new:
                    sampler.add(self._new.popleft())
                if self._closed:
                    return False
                if sampler.live or self._dropped or (sampler.waiting and not self._held and not self._drained):
                    return True
                if not self._drained:
                    self._wake.wait()
                    continue
                action, done = self._drained[0]
            try:
                action()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)
            with self._wake:
                self._drained.popleft()

    def _send(self, items: list[tuple[Any, Event | EngineError]]) -> None:
        """Hand each loop what is for its requests, with one wake-up."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Request, Event | EngineError]]] = {}
        for request, item in items:
            by_loop.setdefault(request.loop, []).append((request, item))
        for loop, own in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, own)
            except RuntimeError:  # the loop was closed, and its requests with it
                for request, _ in own:
                    self._sampler.drop(request)


def _failure(error: Exception) -> EngineError:
    """An error of its own for each request, as each adds its traceback."""
    failure = EngineError(str(error) if isinstance(error, EngineError) else f"the model failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _deliver(items: list[tuple[Request, Event | EngineError]]) -> None:
    for request, item in items:
        request.inbox.append(item)
        request.ready.set()


def _chunks(inbox: deque[Event | EngineError]) -> list[Chunk]:
    """What has arrived, one chunk for each version. Raises the error that ended the reply."""
    chunks: list[Chunk] = []
    while inbox:
        run: list[Event] = []
        while inbox and isinstance(inbox[0], Event) and (not run or inbox[0].version == run[0].version):
            run.append(inbox.popleft())  # type: ignore[arg-type]
        if run:
            ids, logprobs = ints([e.token for e in run]), floats([e.logprob for e in run])
            chunks.append(Chunk(ids, logprobs, run[0].version, run[-1].finish))
        elif chunks:
            break  # hand over what came before the error
        else:
            raise inbox.popleft()  # type: ignore[misc]
    return chunks
