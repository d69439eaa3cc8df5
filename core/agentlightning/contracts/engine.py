"""The Engine contract: serves policies, token ids in and out.

An engine owns no text. It samples from log-softmax(logits / temperature), reports the log-probability of each sampled token in that
distribution, and stamps each token with the version that made it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agentlightning.errors import ContextOverflow, EngineError
from agentlightning.types import FinishReason, FloatArray, IntArray, Policy, Sampling


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some sampled tokens, in order. The last chunk of a reply has `finish`."""

    ids: IntArray
    """(tokens,)"""
    logprobs: FloatArray | None
    """(tokens,) None: the engine cannot tell."""
    version: int
    """Of the policy that sampled these tokens."""
    finish: FinishReason | None = None
    """`stop`: the last token is in `stop_ids`. `length`: `max_tokens` or the context is reached."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine serves."""

    model: str
    """The name that agents use."""
    path: str
    """Folder, or hub id, from which the tokenizer loads."""
    context_length: int
    """Tokens of prompt and response together."""
    uris: frozenset[str] = frozenset({"file"})
    """Schemes of `Policy.uri` from which it loads: `memory`, `file`."""


class Engine(Protocol):
    """Methods may be called from any event loop; heavy work happens in a thread or process of the engine's own."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def policy(self) -> Policy:
        """What is being served now."""
        ...

    def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        """Sample one reply. The same `sampling.seed` gives the same tokens when it is the only request in the engine. Closing the
        iterator aborts. `rollout` is the id of whom the call is: an engine of several parts keeps its calls in one. Raises
        `ContextOverflow` when the prompt leaves no room for one token, `EngineError` otherwise."""
        ...

    async def load(self, policy: Policy) -> dict[str, float]:
        """Serve another version. Replies under way are finished first (`pause`), or go on with the new weights, each token stamped with the
        version that sampled it; caches of the old weights are dropped. Returns what was measured of it, by name; empty where nothing was.
        Raises `EngineError` when the weights are not served."""
        ...

    async def pause(self) -> None:
        """Finish what is under way, then hold new requests until `resume`."""
        ...

    async def resume(self) -> None: ...

    async def close(self) -> None: ...


def check_request(info: EngineInfo, vocabulary: int, prompt_ids: IntArray, sampling: Sampling) -> int:
    """How many tokens may be sampled after a prompt. Raises `ContextOverflow` or `EngineError` for a request that cannot be."""
    prompt, context, name = np.asarray(prompt_ids), info.context_length, info.model
    if not len(prompt):
        raise EngineError("the prompt is empty; expected at least one token")
    if len(prompt) >= context:
        raise ContextOverflow(
            f"the prompt has {len(prompt)} tokens and leaves no room for a reply: the context of {name!r} is {context}; "
            "shorten the history, or use a model with a longer context"
        )
    if prompt.min() < 0 or prompt.max() >= vocabulary:
        raise EngineError(
            f"the prompt has token {max(int(prompt.min()), int(prompt.max()), key=abs)}, but {name!r} has tokens 0 to {vocabulary - 1}; "
            "was it made with another tokenizer?"
        )
    if not (sampling.temperature >= 0 and 0 < sampling.top_p <= 1 and sampling.top_k >= 0):
        raise EngineError(f"cannot sample with {sampling}; expected temperature >= 0, 0 < top_p <= 1, top_k >= 0")
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise EngineError(f"max_tokens is {sampling.max_tokens}; it must be at least 1")
    room = context - len(prompt)
    return min(room, sampling.max_tokens or room)
