"""The sampling of a call and its seed. Sampling belongs to the rollout."""

from __future__ import annotations

import hashlib
import json
import secrets

from agentlightning.gateway.api.schema import ChatRequest, Refused
from agentlightning.types import Rollout, Sampling


def call_seed(rollout: Rollout, call: int, choice: int) -> int:
    """Seed of one choice of one call, 63 bits: a hash of run seed, step, task, index in the group, index of the call, choice."""
    parts = [rollout.seed, rollout.step, rollout.task.id, rollout.index, call, choice]
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1


def choose_sampling(
    rollout: Rollout, request: ChatRequest, stop_ids: tuple[int, ...], call: int, choice: int, ends: tuple[str, ...] = ()
) -> Sampling:
    """The sampling of one choice. A rollout with its own sampling takes stop strings and a lower token limit from the agent. In production
    the agent's settings apply. Raises `Refused` for settings that no engine honours."""
    own = rollout.sampling
    if own is not None:
        limits = [limit for limit in (own.max_tokens, request.limit) if limit is not None]
        return Sampling(
            temperature=own.temperature,
            top_p=own.top_p,
            top_k=own.top_k,
            max_tokens=min(limits, default=None),
            stop=tuple(dict.fromkeys((*request.stops, *own.stop, *ends))),
            stop_ids=tuple(dict.fromkeys((*stop_ids, *own.stop_ids))),
            seed=call_seed(rollout, call, choice),
        )
    if request.penalties:
        name = request.penalties[0]
        raise Refused(f"{name} is not supported, because the engine samples from the model's own distribution. Leave it out.", param=name)
    seed = secrets.randbits(62) if request.seed is None else request.seed + choice
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=request.top_k or 0,
        max_tokens=request.limit,
        stop=tuple(dict.fromkeys((*request.stops, *ends))),
        stop_ids=stop_ids,
        seed=seed,
    )


def overridden(rollout: Rollout, request: ChatRequest) -> list[str]:
    """The agent's settings that the rollout overrides."""
    if rollout.sampling is None:
        return []
    names = [
        name
        for name in ("temperature", "top_p", "top_k")
        if getattr(request, name) is not None and getattr(request, name) != getattr(rollout.sampling, name)
    ]
    return [*names, *(["seed"] if request.seed is not None else []), *request.penalties]
