"""An Engine that replies from a script. It keeps every promise of the contract except that it thinks nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from os import PathLike
from threading import Lock
from typing import Any, Literal, TypeAlias

import numpy as np

from agentlightning.contracts.engine import Chunk, Engine, EngineInfo
from agentlightning.errors import ContextOverflow, EngineError
from agentlightning.types import FinishReason, FloatArray, IntArray, Policy, Sampling, floats, ints

Reply: TypeAlias = str | Sequence[int]
"""Text, or the very token ids. The mark that ends a turn is added where it does not end with one."""
Script: TypeAlias = Callable[[str, Sampling], Reply] | Sequence[Reply]


@dataclass(slots=True)
class Asked:
    """One request that the engine was given."""

    prompt_ids: IntArray
    sampling: Sampling
    tokenizer: Any
    sent: int = 0
    """Tokens handed out."""
    outcome: Literal["running", "finished", "aborted", "failed"] = "running"

    @property
    def prompt(self) -> str:
        """The prompt as text, marks included."""
        return self.tokenizer.decode(self.prompt_ids.tolist())


class ScriptedEngine(Engine):
    """Replies from a function of the prompt and the sampling, or from a list in order of asking.

    `folder` holds a tokenizer (`agentlightning.testing.tokenizer.make_tokenizer` makes one). Replies are streamed `chunk` tokens at a
    time, with `delay` seconds before each. Log-probabilities are made up from seed, position and token: the same each time.
    What was asked stands in `asked`.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        script: Script,
        *,
        model: str = "scripted",
        context_length: int = 4096,
        chunk: int = 4,
        delay: float = 0.0,
        policy: Policy | None = None,
    ) -> None:
        self.info = EngineInfo(model, str(folder), context_length, frozenset({"memory", "file"}))
        self.policy = policy or Policy(version=0, base=model, uri="memory:scripted")
        self.asked: list[Asked] = []
        self.closed = False
        self._script, self._chunk, self._delay = script, chunk, delay
        self._tokenizer: Any = None
        self._lock = Lock()
        self._paused = False
        self._loading = 0
        self._active = 0
        self._gate: Future[None] = _done()
        self._idle: Future[None] = _done()

    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        """See `Engine.generate`."""
        await self._enter()
        asked = None
        try:
            asked = Asked(prompt_ids, sampling, self.tokenizer)
            self.asked.append(asked)
            room = self.info.context_length - len(prompt_ids)
            if room < 1:
                raise ContextOverflow(
                    f"the prompt has {len(prompt_ids)} tokens and the context of {self.info.model!r} is {self.info.context_length}"
                )
            reply, finish = self._reply(asked, min(room, sampling.max_tokens or room))
            scores = _logprobs(reply, sampling.seed or 0)
            for start in range(0, len(reply), self._chunk):
                await asyncio.sleep(self._delay)
                end = min(start + self._chunk, len(reply))
                last = end == len(reply)
                asked.sent = end
                if last:
                    asked.outcome = "finished"
                yield Chunk(ints(reply[start:end]), floats(scores[start:end]), self.policy.version, finish if last else None)
        except (GeneratorExit, asyncio.CancelledError):
            if asked is not None and asked.outcome == "running":
                asked.outcome = "aborted"
            raise
        except Exception:
            if asked is not None:
                asked.outcome = "failed"
            raise
        finally:
            self._leave()

    async def load(self, policy: Policy) -> dict[str, float]:
        """Serve another version."""
        await self._hold(loading=1)
        self.policy = policy
        self._release(loading=1)
        return {}

    async def pause(self) -> None:
        """Finish what is under way, then hold new requests until `resume`."""
        await self._hold(paused=True)

    async def resume(self) -> None:
        self._release(paused=True)

    async def close(self) -> None:
        self.closed = True

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the folder, loaded at first use."""
        with self._lock:
            if self._tokenizer is None:
                from transformers import AutoTokenizer

                auto: Any = AutoTokenizer
                self._tokenizer = auto.from_pretrained(self.info.path)
            return self._tokenizer

    def _reply(self, asked: Asked, limit: int) -> tuple[IntArray, FinishReason]:
        """The ids to send and why they end."""
        if callable(self._script):
            reply = self._script(asked.prompt, asked.sampling)
        else:
            turn = len(self.asked) - 1
            if turn >= len(self._script):
                raise EngineError(f"the script has {len(self._script)} replies and was asked for one more; give it more replies")
            reply = self._script[turn]
        ids: list[int] = self.tokenizer.encode(reply, add_special_tokens=False) if isinstance(reply, str) else list(reply)
        stops = asked.sampling.stop_ids or (self.tokenizer.eos_token_id,)
        end = next((i for i, token in enumerate(ids) if token in stops), None)
        ids = [*ids, stops[0]] if end is None else ids[: end + 1]
        return ints(ids[:limit]), "stop" if len(ids) <= limit else "length"

    async def _hold(self, *, paused: bool = False, loading: int = 0) -> None:
        with self._lock:
            self._paused, self._loading = self._paused or paused, self._loading + loading
            if self._gate.done():
                self._gate = Future()
            idle = self._idle
        await asyncio.shield(asyncio.wrap_future(idle))

    def _release(self, *, paused: bool = False, loading: int = 0) -> None:
        with self._lock:
            self._paused, self._loading = self._paused and not paused, self._loading - loading
            if not self._paused and not self._loading and not self._gate.done():
                self._gate.set_result(None)

    async def _enter(self) -> None:
        while True:
            with self._lock:
                if self.closed:
                    raise EngineError(f"engine {self.info.model!r} is closed")
                if self._gate.done():
                    self._active += 1
                    if self._active == 1:
                        self._idle = Future()
                    return
                gate = self._gate
            await asyncio.shield(asyncio.wrap_future(gate))

    def _leave(self) -> None:
        with self._lock:
            self._active -= 1
            if self._active == 0:
                self._idle.set_result(None)


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


def _logprobs(ids: IntArray, seed: int) -> FloatArray:
    """(tokens,) between -1 and 0, from token, position and seed."""
    position = np.arange(len(ids), dtype=np.uint64)
    mixed = ids.astype(np.uint64) * np.uint64(2654435761) + position * np.uint64(40503) + np.uint64(seed % 2**32)
    return floats(-((mixed % np.uint64(1000)).astype(np.float32)) / 1000)
