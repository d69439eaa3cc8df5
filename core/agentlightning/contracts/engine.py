"""The Engine contract: serves policies, token ids in and out.

An engine knows no text. It samples from log-softmax(logits / temperature), reports the log-probability of each sampled token in that
distribution, and stamps each token with the version that made it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.model import Fit, ModelFiles, Share
from agentlightning.errors import ContextOverflow, EngineError, UnsupportedSetting
from agentlightning.settings import BaseSettings
from agentlightning.types import Doubles, FinishReason, FloatArray, IntArray, Policy, PolicyKind, Sampling


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Sampled tokens, in order. The last chunk of a reply has `finish`."""

    ids: IntArray
    """(tokens,)"""
    logprobs: FloatArray | None
    """(tokens,); None: the engine reports none."""
    version: int
    """Version of the policy that sampled these tokens."""
    finish: FinishReason | None = None
    """`stop`: the last token is in `stop_ids`. `length`: `max_tokens` or the context is reached."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The model that an engine serves."""

    model: str
    """The name that agents use."""
    path: str
    """Folder or hub id of the tokenizer."""
    context_length: int
    """Tokens of prompt and response together."""
    uris: frozenset[str] = frozenset({"file"})
    """Schemes of `Policy.uri` that `load` accepts: `memory`, `file`."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings(BaseSettings):
    """Base of an engine's settings: a subclass is a frozen dataclass, and its fields are the keys of the `[engine]` table."""

    table = "engine"

    @property
    def copy_weights(self) -> bool | None:
        """Whether the engine keeps its own weights while the trainer steps. False: it serves the trainer's own weights, so training with
        off-policy steps is refused. Declare a field of this name to make it a setting; its None means true when max_staleness > 0."""
        return False


class Engine(ABC):
    """Base of every engine. Set `info` and `policy` in `__init__`, or override them with properties.

    Callers use any event loop. Heavy work belongs in a thread or process of the engine's own.
    """

    Settings: ClassVar[type[EngineSettings]] = EngineSettings
    remote: ClassVar[bool] = False
    """Whether the model lies on somebody else's server: `ModelFiles.path` is empty then, and training is refused."""
    several: ClassVar[frozenset[PolicyKind]] = frozenset()
    """What several policies that it serves at once may be: LoRA adapters over one base, or full models like the base."""
    scores: ClassVar[bool] = False
    """Whether it has `score`, so that a teacher can be served by it."""
    answers: ClassVar[bool] = False
    """Whether it has `answer`, so that a teacher can show replies."""
    info: EngineInfo
    policy: Policy
    """The policy that the engine serves now. Of several, the first one."""

    @property
    def policies(self) -> Mapping[str, Engine]:
        """The engine of each served policy, by name. All of them are this engine, and compute their replies together."""
        return {self.policy.name: self}

    @classmethod
    async def create(cls, model: ModelFiles, settings: Any, share: Share) -> Self:
        """Open the engine for a run. `settings` is an instance of `Settings`. Raises `ConfigError` for settings that cannot work."""
        raise NotImplementedError(f"{cls.__qualname__} has no `create`. Add one to use this engine in a run.")

    @classmethod
    def check_settings(cls, settings: Any) -> None:
        """Raise `ConfigError` for settings that cannot work on this machine (blocking). Loads nothing, so that a run is refused early."""

    @classmethod
    def check_model(cls, model: ModelFiles) -> Fit:
        """Tell whether this engine takes a model, from its configuration alone (blocking)."""
        return Fit("unknown", "known only when it starts")

    @classmethod
    def number_type(cls, model: ModelFiles, settings: Any) -> str:
        """Return the number type of a model's weights on this machine, if the settings leave it to the engine (blocking); else ''."""
        return ""

    @abstractmethod
    def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        """Sample one reply. Closing the iterator aborts it.

        The same `sampling.seed` gives the same tokens when it is the only request in the engine. `rollout` is the id of the caller's
        rollout; an engine with several replicas keeps the calls of one rollout together. Raises `ContextOverflow` when the prompt leaves no
        room for one token, and `EngineError` for any other failure.
        """

    @abstractmethod
    async def load(self, policy: Policy) -> dict[str, float]:
        """Serve another version of the policy with this name, and return measurements of the load by name. An engine of
        `several` policies serves a new name beside the others.

        In-flight replies finish first (`pause`), or continue with the new weights. Each token carries the version that sampled it. The
        caches of the old weights are dropped. Raises `EngineError` when the engine cannot serve the policy.
        """

    @abstractmethod
    async def pause(self) -> None:
        """Finish in-flight replies, then hold new requests until `resume`."""

    @abstractmethod
    async def resume(self) -> None:
        """Undo `pause`."""

    async def score(self, batch: Batch) -> Doubles:
        """(tokens,) log-probabilities of the sampled tokens of a batch under the served weights, each at the temperature that it was
        sampled with; NaN on context."""
        raise UnsupportedSetting(f"Engine {type(self).__name__!r} cannot score given tokens. Use a teacher on engine 'torch'.")

    async def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text in the server's tokenizer, with its special tokens as tokens and none added. Only an engine that is
        `remote` and `scores` has it; elsewhere `EngineInfo.path` has the tokenizer."""
        raise UnsupportedSetting(f"Engine {type(self).__name__!r} has no server to ask. Read the tokenizer of its model.")

    async def answer(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model's reply to messages, with the tools it may call; all in OpenAI's form. `settings` may have `tool_choice`,
        `parallel_tool_calls`, and `response_format`."""
        raise UnsupportedSetting(f"Engine {type(self).__name__!r} takes token ids, not messages. Use engine 'upstream'.")

    async def close(self) -> None:
        """Release everything. A second call does nothing. Later requests raise `EngineError`."""


def check_request(info: EngineInfo, vocabulary: int, prompt_ids: IntArray, sampling: Sampling) -> int:
    """Return how many tokens may follow a prompt. Raises `ContextOverflow` or `EngineError` for an impossible request."""
    prompt, context, name = np.asarray(prompt_ids), info.context_length, info.model
    if not len(prompt):
        raise EngineError("The prompt is empty. Send at least one token.")
    if len(prompt) >= context:
        raise ContextOverflow(
            f"The prompt has {len(prompt)} tokens and leaves no room for a reply, because the context of {name!r} is {context}. "
            "Shorten the history, or use a model with a longer context."
        )
    if prompt.min() < 0 or prompt.max() >= vocabulary:
        raise EngineError(
            f"The prompt has token {max(int(prompt.min()), int(prompt.max()), key=abs)}, but {name!r} has tokens 0 to {vocabulary - 1}. "
            "Use the tokenizer of this model."
        )
    if not (sampling.temperature >= 0 and 0 < sampling.top_p <= 1 and sampling.top_k >= 0):
        raise EngineError(f"Cannot sample with {sampling}. Use temperature >= 0, 0 < top_p <= 1 and top_k >= 0.")
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise EngineError(f"max_tokens is {sampling.max_tokens}. Use at least 1.")
    room = context - len(prompt)
    return min(room, sampling.max_tokens or room)
