"""Samples one reply, over the deaths of its server: sampled tokens stay, and new ones are conditioned on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from msgspec.structs import replace

from agentlightning.contracts.engine import Chunk
from agentlightning.errors import EngineError
from agentlightning.types import IntArray, Policy, Sampling, floats, ints
from agentlightning_vllm.replica import Replica
from agentlightning_vllm.wire import Interrupted

RETRIES = 3
"""Maximum retries of a request without a new token."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request for a reply."""

    policy: str
    prompt: IntArray
    sampling: Sampling
    limit: int
    """Maximum tokens of the reply."""
    put: Callable[[Chunk | BaseException], None]
    """Takes the reply's chunks."""


async def sample(replica: Replica, request: Request, policies: Callable[[], Sequence[Policy]]) -> None:
    """Sample a reply on a replica. A fresh server gets `policies`."""
    sent, sampling = list[int](), request.sampling
    failures = 0
    while True:
        life = replica.life
        try:
            prompt = ints([*request.prompt.tolist(), *sent])
            stream = replica.complete(request.policy, prompt, _seeded(sampling, len(sent)), request.limit - len(sent))
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    sent += chunk.ids.tolist()
                    failures = 0
                    request.put(chunk)
                    if chunk.finish is not None:
                        return
        except Interrupted as reason:
            failures += 1
            if failures > RETRIES:
                raise EngineError(f"vLLM server {replica.number} failed to answer a request {failures} times: {reason}") from reason
            await replica.recover(life, policies(), reason)
            if sent and (len(sent) >= request.limit or sent[-1] in sampling.stop_ids):  # only the end of the stream was lost
                finish = "stop" if sent[-1] in sampling.stop_ids else "length"
                version = next(policy.version for policy in policies() if policy.name == request.policy)
                request.put(Chunk(ints([]), floats([]), version, finish))
                return


def _seeded(sampling: Sampling, done: int) -> Sampling:
    """Return the seed after `done` tokens, so that a resumed request does not repeat its first random numbers."""
    return sampling if not done or sampling.seed is None else replace(sampling, seed=(sampling.seed + 0x9E3779B97F4A7C15 * done) % 2**63)
