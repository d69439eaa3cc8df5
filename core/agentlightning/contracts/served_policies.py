"""The base of engines that serve several policies at once, over one model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping

from agentlightning.contracts.engine import Chunk, Engine
from agentlightning.types import IntArray, Policy, Sampling

MAIN = "main"
"""The policy of a run without named policies."""


class MultiPolicyEngine(Engine):
    """An engine with one policy, `main`, or with several named ones. Requests for all of them share batches."""

    several = frozenset({"lora"})

    @property
    @abstractmethod
    def served(self) -> Mapping[str, Policy]:
        """The served policies by name: `main` alone, or the named ones in the order of their first load."""

    @abstractmethod
    def generate_as(self, policy: str, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        """Sample a reply of one policy. See `Engine.generate`."""

    @property
    def policy(self) -> Policy:  # pyright: ignore[reportIncompatibleVariableOverride]  # `Engine` allows a property
        """Return the served policy, of several the first."""
        return next(iter(self.served.values()))

    @property
    def policies(self) -> Mapping[str, Engine]:
        """See `Engine.policies`."""
        return {name: self if name == MAIN else ServedPolicy(self, name) for name in self.served}

    def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        """See `Engine.generate`."""
        return self.generate_as(self.policy.name, prompt_ids, sampling, rollout=rollout)


class ServedPolicy(Engine):
    """One of several policies of an engine. Its replies share batches with those of the others."""

    def __init__(self, engine: MultiPolicyEngine, name: str) -> None:
        self._engine, self._name = engine, name
        self.info = engine.info

    @property
    def policy(self) -> Policy:  # pyright: ignore[reportIncompatibleVariableOverride]  # `Engine` allows a property
        return self._engine.served[self._name]

    @property
    def policies(self) -> Mapping[str, Engine]:
        return self._engine.policies

    def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        return self._engine.generate_as(self._name, prompt_ids, sampling, rollout=rollout)

    async def load(self, policy: Policy) -> dict[str, float]:
        return await self._engine.load(policy)

    async def pause(self) -> None:
        await self._engine.pause()

    async def resume(self) -> None:
        await self._engine.resume()

    async def close(self) -> None:
        await self._engine.close()
