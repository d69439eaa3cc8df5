"""The sampling of a call and its seed. Sampling belongs to the rollout."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

from agentlightning.gateway.api.parameters import unhonoured_sampling
from agentlightning.gateway.api.schema import ChatRequest
from agentlightning.types import Rollout, Sampling


def call_seed(rollout: Rollout, call: int, choice: int) -> int:
    """Seed of one choice of one call, 63 bits: a hash of run seed, step, task, index in the group, index of the call, choice."""
    parts = [rollout.seed, rollout.step, rollout.task.id, rollout.index, call, choice]
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1


def choose_sampling(
    rollout: Rollout, request: ChatRequest, stop_ids: tuple[int, ...], call: int, choice: int, ends: tuple[str, ...] = ()
) -> Sampling:
    """The sampling of one choice. `stop_ids` and `ends`: the ends of a reply, as tokens and as text. A rollout with its own sampling takes
    stop strings, stop tokens and a lower token limit from the agent. In production the agent's settings apply."""
    own, agents_ids = rollout.sampling, tuple(request.stop_token_ids or ())
    ends = () if own is None and request.ignore_eos else ends
    if own is not None:
        limits = [limit for limit in (own.max_tokens, request.limit) if limit is not None]
        return Sampling(
            temperature=own.temperature,
            top_p=own.top_p,
            top_k=own.top_k,
            max_tokens=min(limits, default=None),
            stop=tuple(dict.fromkeys((*request.stops, *own.stop, *ends))),
            stop_ids=tuple(dict.fromkeys((*stop_ids, *own.stop_ids, *agents_ids))),
            seed=call_seed(rollout, call, choice),
        )
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(request.top_k or 0, 0),
        max_tokens=request.limit,
        stop=tuple(dict.fromkeys((*request.stops, *ends))),
        stop_ids=tuple(dict.fromkeys((*(() if request.ignore_eos else stop_ids), *agents_ids))),
        seed=secrets.randbits(62) if request.seed is None else (request.seed + choice) % 2**63,
    )


def overridden(rollout: Rollout, fields: Mapping[str, Any]) -> list[str]:
    """The agent's settings, in its raw body, that the rollout overrides."""
    own = rollout.sampling
    if own is None:
        return []
    mine = {"temperature": (own.temperature,), "top_p": (own.top_p,), "top_k": (own.top_k, own.top_k or -1)}
    names = [name for name, values in mine.items() if fields.get(name) is not None and fields[name] not in values]
    return [*names, *(name for name in ("seed", "ignore_eos") if fields.get(name) not in (None, False)), *unhonoured_sampling(fields)]
