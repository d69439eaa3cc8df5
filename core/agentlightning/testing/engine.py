"""An engine that replies from a script. It keeps every promise of the contract, without a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from os import PathLike
from threading import Lock
from typing import Any, Literal, TypeAlias

import numpy as np

from agentlightning.contracts.engine import Chunk, Engine, EngineInfo, check_request
from agentlightning.contracts.gate import Gate
from agentlightning.errors import EngineError
from agentlightning.types import FinishReason, FloatArray, IntArray, Policy, Sampling, floats, ints

Reply: TypeAlias = str | Sequence[int]
"""Text, or token ids. The engine appends the mark that ends a turn, unless the reply ends with one."""
Script: TypeAlias = Callable[[str, Sampling], Reply] | Sequence[Reply]


@dataclass(slots=True)
class Asked:
    """One request to the engine."""

    prompt_ids: IntArray
    sampling: Sampling
    tokenizer: Any
    sent: int = 0
    """Tokens sent so far."""
    status: Literal["running", "finished", "aborted", "failed"] = "running"

    @property
    def prompt(self) -> str:
        """The prompt as text, marks included."""
        return self.tokenizer.decode(self.prompt_ids.tolist())


class ScriptedEngine(Engine):
    """Replies from a function of the prompt and the sampling, or from a list in the order of the requests.

    `folder` holds a tokenizer (`agentlightning.testing.tokenizer.make_tokenizer` makes one). Replies stream `chunk` tokens at a time, with
    `delay` seconds before each chunk. Log-probabilities are invented from position and token. `asked` lists the requests.
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
    ) -> None:
        self.info = EngineInfo(model, str(folder), context_length, frozenset({"memory", "file"}))
        self.policy = Policy(version=0, base=model, uri="memory:scripted")
        self.asked: list[Asked] = []
        self.closed = False
        self._script, self._chunk, self._delay = script, chunk, delay
        self._tokenizer: Any = None
        self._lock = Lock()
        self._gate = Gate()

    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        """See `Engine.generate`."""
        async with self._gate.reply():
            if self.closed:
                raise EngineError(f"Engine {self.info.model!r} is closed. Send requests before close().")
            asked = Asked(prompt_ids, sampling, self.tokenizer)
            self.asked.append(asked)
            async with aclosing(self._answer(asked)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _answer(self, asked: Asked) -> AsyncGenerator[Chunk]:
        """Stream the script's reply, and keep the request's state up to date."""
        try:
            limit = check_request(self.info, len(self.tokenizer), asked.prompt_ids, asked.sampling)
            reply, finish = self._reply(asked, limit)
            logprobs = _logprobs(reply)
            for start in range(0, len(reply), self._chunk):
                await asyncio.sleep(self._delay)
                end = min(start + self._chunk, len(reply))
                last = end == len(reply)
                asked.sent = end
                if last:
                    asked.status = "finished"
                yield Chunk(ints(reply[start:end]), floats(logprobs[start:end]), self.policy.version, finish if last else None)
        except (GeneratorExit, asyncio.CancelledError):
            if asked.status == "running":
                asked.status = "aborted"
            raise
        except Exception:
            asked.status = "failed"
            raise

    async def load(self, policy: Policy) -> dict[str, float]:
        """Serve another version, after the in-flight replies."""
        try:
            await self._gate.hold()
            self.policy = policy
        finally:
            self._gate.release()
        return {}

    async def pause(self) -> None:
        """See `Engine.pause`."""
        await self._gate.hold()

    async def resume(self) -> None:
        """See `Engine.resume`."""
        self._gate.release()

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
        """Return the ids to send, and why they end."""
        if callable(self._script):
            reply = self._script(asked.prompt, asked.sampling)
        else:
            turn = len(self.asked) - 1
            if turn >= len(self._script):
                raise EngineError(f"The script has {len(self._script)} replies, and this request needs another. Add a reply to the script.")
            reply = self._script[turn]
        ids: list[int] = self.tokenizer.encode(reply, add_special_tokens=False) if isinstance(reply, str) else list(reply)
        stops = asked.sampling.stop_ids or (self.tokenizer.eos_token_id,)
        end = next((i for i, token in enumerate(ids) if token in stops), None)
        ids = [*ids, stops[0]] if end is None else ids[: end + 1]
        return ints(ids[:limit]), "stop" if len(ids) <= limit else "length"


def _logprobs(ids: IntArray) -> FloatArray:
    """(tokens,) between -1 and 0, from token and position."""
    position = np.arange(len(ids), dtype=np.uint64)
    mixed = ids.astype(np.uint64) * np.uint64(2654435761) + position * np.uint64(40503)
    return floats(-((mixed % np.uint64(1000)).astype(np.float32)) / 1000)
