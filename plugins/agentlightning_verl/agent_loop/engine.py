"""verl's servers as an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from agentlightning.contracts.engine import Chunk, Engine, EngineInfo
from agentlightning.errors import EngineError, UnsupportedSetting
from agentlightning.types import IntArray, Policy, Sampling, floats, ints, new_id


class ServerEngine(Engine):
    """verl's servers as an `Engine`. verl loads their weights, and each reply reports its version."""

    def __init__(self, client: Any, info: EngineInfo, *, seeded: bool) -> None:
        self.info = info
        self.policy = Policy(version=0, base=info.model, uri="verl:")
        self._client, self._seeded = client, seeded

    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        """Sample the reply as one chunk."""
        room = self.info.context_length - len(prompt_ids)
        limit = min(room, sampling.max_tokens or room)
        output = await self._client.generate(
            request_id=rollout or new_id(),
            prompt_ids=prompt_ids.tolist(),
            sampling_params={
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k or -1,
                "repetition_penalty": 1.0,
                "max_tokens": limit,
                "stop_token_ids": list(sampling.stop_ids),
                "logprobs": True,
                **({"seed": sampling.seed % 2**63} if self._seeded and sampling.seed is not None else {}),
            },
        )
        if output.stop_reason == "aborted":
            raise EngineError("verl's server aborted the reply. See verl's log.")
        ids, version = list(output.token_ids), output.extra_fields.get("global_steps")
        scores = None if output.log_probs is None else floats(output.log_probs)
        finish = "length" if len(ids) >= limit and ids[-1] not in sampling.stop_ids else "stop"
        yield Chunk(ints(ids), scores, -1 if version is None else int(version), finish)

    async def load(self, policy: Policy) -> dict[str, float]:
        """Raise `UnsupportedSetting`, because verl loads its servers itself."""
        raise UnsupportedSetting("verl loads its servers itself. Train through main_ppo.")

    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
