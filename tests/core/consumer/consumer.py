"""The public API as a user writes it. A test checks the types of this file with pyright and mypy, both strict; nothing runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import agentlightning as agl
from agentlightning.contracts.engine import Chunk, Engine, EngineInfo, EngineSettings, check_request
from agentlightning.contracts.gate import Gate
from agentlightning.contracts.hookspecs import Register
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.testing.engine_contract import EngineContract
from agentlightning.types import IntArray, Policy, Sampling, floats, ints
from agentlightning_autogen import LightningChatCompletionClient
from agentlightning_langchain import LightningCallback, current_span_id, install
from agentlightning_openai_agents import LightningTracingProcessor

# An agent, and training it


async def solve(task: dict[str, Any], llm: agl.LLM) -> float:
    address: str = llm.base_url
    agl.note("asked", address=address)
    agl.reward(0.5, name="format")
    return 1.0


def train() -> str:
    run: agl.Run = agl.train(
        solve,
        tasks=[{"question": "1 + 1"}],
        model="smollm2-135m",
        steps=3,
        algorithm=agl.LightningRL(group_size=4, advantage="rloo", loss=agl.PPOClip(clip_high=0.3)),
        sampling=agl.Sampling(max_tokens=100, temperature=0.8),
    )
    return str(run.folder)


async def train_async() -> agl.Run:
    return await agl.train_async(solve, tasks=[{"question": "1 + 1"}], model="smollm2-135m", algorithm=agl.DPO())


def production() -> None:
    with agl.rollout({"question": "1 + 1"}) as rollout:
        attempt: str = rollout.attempt_id
        agl.reward(1.0, span=current_span_id())
    agl.reward_later(attempt, 1.0)


# An adapter's callback


def with_langchain(agent: Any) -> Any:
    install(models=["gpt-4o-mini"])
    return agent.invoke({"messages": []}, config={"callbacks": [LightningCallback()]})


def other_adapters(client: Any) -> tuple[LightningTracingProcessor, LightningChatCompletionClient]:
    return LightningTracingProcessor(), LightningChatCompletionClient(client)


# An advantage


def median(rollouts: RolloutArrays, returns: NDArray[np.float64], *, scale: float = 1.0) -> NDArray[np.float64]:
    return (returns - float(np.nanmedian(returns))) * scale


@agl.hookimpl
def register_advantages(register: Register) -> None:
    register("median", median, summary="r - median")


# An engine


@dataclass(frozen=True, kw_only=True)
class EchoSettings(EngineSettings):
    context: int = 128


class Echo(Engine):
    Settings = EchoSettings

    def __init__(self, model: ModelFiles, settings: EchoSettings) -> None:
        self.info = EngineInfo(model.name, model.path, settings.context)
        self.policy = Policy(version=0, base=model.name, uri=f"file:{model.path}")
        self.gate = Gate()

    @classmethod
    async def create(cls, model: ModelFiles, settings: EchoSettings, share: Share) -> Echo:
        return cls(model, settings)

    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        limit = check_request(self.info, 100, prompt_ids, sampling)
        async with self.gate.reply():
            yield Chunk(ints(prompt_ids[:limit]), floats([0.0] * limit), self.policy.version, "length")

    async def load(self, policy: Policy) -> dict[str, float]:
        self.policy = policy
        return {}

    async def pause(self) -> None:
        await self.gate.hold()

    async def resume(self) -> None:
        self.gate.release()


class TestEcho(EngineContract):
    prompt: ClassVar[list[int]] = [1, 2]
