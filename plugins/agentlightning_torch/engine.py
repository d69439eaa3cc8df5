"""Serves the weights of this process with continuous batching, in the engine's own thread.

A request joins between two decode steps. A shared prompt is prefilled once. Keys and values of a conversation or a group are copied until
the weights change. Each token has the version of its weights.

We tried transformers' own continuous batching (`generate_batch`, 5.23) first. It has no seed per request, reports log-probabilities of the
truncated distribution, and shares one `do_sample` among all requests. New weights also have no moment between steps, and it was slower.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.engine import Chunk, EngineInfo, check_request
from agentlightning.contracts.model import Fit, ModelFiles, Share
from agentlightning.contracts.served_policies import MAIN, MultiPolicyEngine
from agentlightning.errors import EngineError
from agentlightning.training.weight_sync import WeightCheck, folder_of
from agentlightning.types import Doubles, IntArray, Policy, Sampling, floats, ints
from agentlightning_torch.given_tokens import GivenTokens
from agentlightning_torch.lengths import switches
from agentlightning_torch.named_policies import check_rows, load_policy
from agentlightning_torch.regimes import Samplers
from agentlightning_torch.sampler import Counts, Reply, SampledToken
from agentlightning_torch.serving import check_served
from agentlightning_torch.settings import TorchEngineSettings
from agentlightning_torch.weight_check import compare_with_check
from agentlightning_torch.weights import Weights, chosen_type, find_device, get_weights, is_loaded
from agentlightning_torch.workers import end_workers, ending_workers

log = logging.getLogger(__name__)


def cache_bytes(settings: TorchEngineSettings, device: torch.device) -> int:
    """Return the cache size in bytes. It does not depend on currently free memory, so two runs have the same size."""
    if settings.memory_gb is not None:
        return int(settings.memory_gb * 2**30)
    return int(0.3 * torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 2 * 2**30


class Request(Reply):
    """A reply, and the event loop that waits for it."""

    def __init__(self, prompt: IntArray, sampling: Sampling, limit: int, policy: str) -> None:
        super().__init__(prompt, sampling, limit, policy)
        self.loop = asyncio.get_running_loop()
        self.ready = asyncio.Event()
        self.inbox: deque[SampledToken | EngineError] = deque()
        """Used only in `loop`."""


class TorchEngine(MultiPolicyEngine):
    """See `Engine`."""

    Settings = TorchEngineSettings
    several = frozenset({"full", "lora"})
    scores = True

    @classmethod
    async def create(cls, model: ModelFiles, settings: TorchEngineSettings, share: Share) -> TorchEngine:
        """Load the model, or share the weights of the run's trainer. Raises `ConfigError` for an unsupported model."""
        return await asyncio.to_thread(cls._open, model, settings, share)

    @classmethod
    def check_model(cls, model: ModelFiles) -> Fit:
        """See `Engine`. It serves a small copy of the model's architecture."""
        from agentlightning_torch.miniature import try_model

        def attempt(miniature: ModelFiles) -> str:
            engine = cls._open(miniature, TorchEngineSettings(device="cpu", dtype="float32"), {})
            engine._tell(lambda: setattr(engine, "_closed", True), late=True)
            engine._thread.join()
            return "exactly, with a cache of keys and values"

        return try_model(model, attempt)

    @classmethod
    def number_type(cls, model: ModelFiles, settings: TorchEngineSettings) -> str:
        """See `Engine`."""
        return str(chosen_type(model, find_device(settings.device), settings.dtype))

    @classmethod
    @ending_workers()
    def _open(cls, model: ModelFiles, settings: TorchEngineSettings, share: Share) -> TorchEngine:
        shared = is_loaded(share, model)
        weights = get_weights(share, model, device=settings.device, dtype=settings.dtype)
        return cls(weights.copy(), settings, source=weights) if settings.copy_weights and shared else cls(weights, settings)

    def __init__(self, weights: Weights, settings: TorchEngineSettings | None = None, *, source: Weights | None = None) -> None:
        """Create an engine. `source` is the trainer's weights if `weights` is a copy of them. It is None if both are one, or without a
        trainer."""
        settings = settings or TorchEngineSettings()
        self._weights, self._source = weights, source
        with weights.lock:
            config = weights.model.config.get_text_config()
            shape = check_served(weights.model, weights.files.name)
        switched = tuple(switch for switch in switches(config) if switch < config.max_position_embeddings)
        if switched:
            log.warning(
                "Model %r changes its rope factors beyond %s tokens. Replies that begin below that length end there.",
                weights.files.name,
                " and ".join(map(str, switched)),
            )
        self._given_tokens = GivenTokens(weights)
        self._vocabulary: int = config.vocab_size
        self.info = EngineInfo(weights.files.name, weights.files.path, config.max_position_embeddings, frozenset({"memory", "file"}))
        memory = cache_bytes(settings, weights.device)
        self._sampler = Samplers(weights, shape, switched, max_batch=settings.max_batch, memory=memory)
        self._wake = threading.Condition()
        # Protected by `_wake`: requests from other threads to the engine's thread.
        self._new: deque[Request] = deque()
        self._dropped: deque[Request] = deque()
        self._drained: deque[tuple[Callable[[], dict[str, float]], Future[dict[str, float]]]] = deque()
        self._held = 0
        self._closed = False
        self._last_check: WeightCheck | None = None
        """Weight check of the served folder."""
        self._named_checks: dict[str, WeightCheck | None] = {}
        """The same of each named policy."""
        self._thread = threading.Thread(target=self._run, name="agl-torch-engine", daemon=True)
        self._thread.start()

    @property
    def served(self) -> Mapping[str, Policy]:
        """See `MultiPolicyEngine.served`."""
        return self._weights.policies

    @property
    def counts(self) -> Counts:
        """Return the tokens prefilled, copied, and decoded so far."""
        return self._sampler.counts

    async def score(self, batch: Batch) -> Doubles:
        """See `Engine.score`."""
        if self._closed:
            raise EngineError(f"Engine {self.info.model!r} is closed. Score batches before close().")
        return await asyncio.to_thread(self._given_tokens.score, batch)

    async def generate_as(
        self, policy: str, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None
    ) -> AsyncIterator[Chunk]:
        """See `MultiPolicyEngine.generate_as`."""
        limit = check_request(self.info, self._vocabulary, prompt_ids, sampling)
        room = self._sampler.room(len(prompt_ids))
        request = Request(np.asarray(prompt_ids), sampling, limit if room is None else min(limit, room), policy)
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
        """See `Engine.load`.

        `memory:` means the trainer's current weights. Shared weights need no copy. A separate copy is updated between two tokens, and
        in-flight replies continue. `file:` is a folder from `save_pretrained`. Its weight check, if it has one, is compared.
        """
        source = self._source
        if source is not None and policy == source.policies.get(policy.name):  # also of the served version: a reload copies it again
            await asyncio.to_thread(self._take, source, policy)
            return {}
        return await self._when_drained(lambda: self._load(policy))

    async def pause(self) -> None:
        """See `Engine.pause`. It holds waiting requests too, and drops keys and values: new weights follow, and their training needs the
        memory. Each call needs a `resume`."""
        with self._wake:
            self._held += 1
        await self._when_drained(self._forget)

    async def resume(self) -> None:
        with self._wake:
            self._held = max(0, self._held - 1)
            self._wake.notify()

    async def close(self) -> None:
        """Stop. In-flight replies end with `EngineError`."""
        self._tell(lambda: setattr(self, "_closed", True), late=True)
        await asyncio.to_thread(self._thread.join)

    def _tell(self, change: Callable[[], Any], *, late: bool = False) -> None:
        with self._wake:
            if self._closed and not late:
                raise EngineError("The engine is closed. Create a new one.")
            change()
            self._wake.notify()

    async def _when_drained(self, action: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Run `action` in the engine's thread once no reply is in flight, and return its measurements. New replies wait."""
        done: Future[dict[str, float]] = Future()
        self._tell(lambda: self._drained.append((action, done)))
        return await asyncio.shield(asyncio.wrap_future(done))

    def _forget(self) -> dict[str, float]:
        self._sampler.forget()
        return {}

    def _take(self, source: Weights, policy: Policy) -> None:
        with self._weights.lock:
            self._weights.take(source)
            if len(self._weights.policies) > 1:
                check_rows(self._weights, policy.name)

    def _load(self, policy: Policy) -> dict[str, float]:
        weights, scheme = self._weights, policy.uri.partition(":")[0]
        measured: dict[str, float] = {}
        with weights.lock:
            served = weights.policies.get(policy.name)
            if policy.name != MAIN and scheme == "file" and policy != served:
                measured = self._load_named(policy)
            elif scheme == "file" and policy != served:
                weights.load_state(folder_of(policy))
                measured, self._last_check = compare_with_check(weights.model, policy, self._last_check)
                weights.policy = policy
            elif scheme == "memory" and policy != served:
                raise EngineError(
                    f"The weights in memory are {served or weights.policy}, not {policy}. Load the policy that the trainer's last step "
                    "returned."
                )
            elif scheme not in ("file", "memory"):
                raise EngineError(f"The torch engine cannot load {policy.uri!r}. Expected `file:` or `memory:`.")
            if len(weights.policies) > 1:
                check_rows(weights, policy.name)
            self._sampler.forget()
        return measured

    def _load_named(self, policy: Policy) -> dict[str, float]:
        """Serve a named policy from a folder, beside the others."""
        weights = self._weights
        load_policy(weights, policy, folder_of(policy))
        with weights.adapters.all(policy.name):
            measured, self._named_checks[policy.name] = compare_with_check(weights.model, policy, self._named_checks.get(policy.name))
        weights.add_policy(policy)
        return measured

    # Below: the engine's thread.

    def _run(self) -> None:
        while self._listen():
            try:
                self._drop()
                events = self._sampler.step(admit=not (self._held or self._drained))
            except Exception as error:
                self._send([(reply, _failure(error)) for reply in self._sampler.fail()])
            else:
                self._send([(event.reply, event) for event in events])
        self._send([(reply, EngineError("The engine was closed during this request. Create a new one.")) for reply in self._sampler.fail()])
        for _, done in self._drained:
            done.set_exception(EngineError("The engine was closed during this request. Create a new one."))

    def _drop(self) -> None:
        """Remove closed requests. One that was opened and closed during a step is still new, so new ones come first."""
        with self._wake:
            self._take_new()
            dropped = list(self._dropped)
            self._dropped.clear()
        for request in dropped:
            self._sampler.drop(request)

    def _take_new(self) -> None:
        while self._new:
            self._sampler.add(self._new.popleft())

    def _listen(self) -> bool:
        """Take new requests, and wait until one can run. Return False if the engine is closed."""
        sampler = self._sampler
        while True:
            with self._wake:
                self._take_new()
                if self._closed:
                    return False
                if sampler.in_flight or self._dropped or (sampler.waiting and not self._held and not self._drained):
                    return True
                if not self._drained:
                    end_workers()  # the trainer's turn, or nobody's
                    self._wake.wait()
                    continue
                action, done = self._drained[0]
            try:
                measured = action()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(measured)
            with self._wake:
                self._drained.popleft()

    def _send(self, items: list[tuple[Any, SampledToken | EngineError]]) -> None:
        """Send each event loop the items of its requests, with one wake-up."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Request, SampledToken | EngineError]]] = {}
        for request, item in items:
            by_loop.setdefault(request.loop, []).append((request, item))
        for loop, own in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, own)
            except RuntimeError:  # the loop was closed together with its requests
                for request, _ in own:
                    self._sampler.drop(request)


def _failure(error: Exception) -> EngineError:
    """Create one error per request, because each adds its own traceback."""
    failure = EngineError(str(error) if isinstance(error, EngineError) else f"The model failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _deliver(items: list[tuple[Request, SampledToken | EngineError]]) -> None:
    for request, item in items:
        request.inbox.append(item)
        request.ready.set()


def _chunks(inbox: deque[SampledToken | EngineError]) -> list[Chunk]:
    """Yield the inbox's tokens, one chunk per version. Raises the error that ended the reply."""
    chunks: list[Chunk] = []
    while inbox:
        run: list[SampledToken] = []
        while inbox and isinstance(inbox[0], SampledToken) and (not run or inbox[0].version == run[0].version):
            run.append(inbox.popleft())  # type: ignore[arg-type]
        if run:
            ids, logprobs = ints([e.token for e in run]), floats([e.logprob for e in run])
            chunks.append(Chunk(ids, logprobs, run[0].version, run[-1].finish))
        elif chunks:
            break  # first the tokens before the error
        else:
            raise inbox.popleft()  # type: ignore[misc]
    return chunks
