"""A deployed agent for tests: a served tiny model, an agent that records what it does with `agl.rollout`, rewards that come later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, OpenAI

import agentlightning as agl
from agentlightning.gateway import Gateway
from agentlightning.serving.serve import served_model
from agentlightning.stores.common import open_store
from agentlightning.training.progress import Progress
from agentlightning.types import Reward
from agentlightning_torch.engine import TorchEngine

TASKS: list[Any] = [{"id": str(n), "text": text} for n, text in enumerate(["abc", "xyz", "hello", "12+3", "why?", "one two"])]


def score(text: str) -> float:
    """How many of the first characters are letters."""
    return sum(each.isalpha() for each in text[:8]) / 8


async def solve(task: Any, llm: agl.LLM) -> float:
    """The agent in training and evaluation."""
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        messages: Any = [{"role": "user", "content": task["text"]}]
        answer = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=8)
    return score(answer.choices[0].message.content or "")


def act(task: Any, seed: int, store: str, base_url: str, **asks: Any) -> tuple[str, float]:
    """The agent in production; its attempt, and what its answer turns out to be worth."""
    with agl.rollout(task, store=store, gateway=base_url) as rollout:
        llm = rollout.llm
        with OpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
            answer = client.chat.completions.create(
                model=llm.model, messages=[{"role": "user", "content": task["text"]}], max_tokens=8, seed=seed, **asks
            )
        return rollout.attempt_id, score(answer.choices[0].message.content or "")


@contextmanager
def deployed(store: str, *, model: str | None = None, run: Path | None = None) -> Iterator[str]:
    """The address of a gateway that serves a model, or a run, as `agl serve` does."""
    loop = asyncio.new_event_loop()
    files, _, policy, *_ = served_model(model or str(run), Progress())
    engine = loop.run_until_complete(TorchEngine.create(files, TorchEngine.Settings(), {}))
    loop.run_until_complete(engine.load(policy or engine.policy))
    opened = open_store(store)
    gateway = Gateway(opened, engine)
    loop.run_until_complete(gateway.start())
    try:
        yield gateway.base_url
    finally:
        for end in (gateway.stop, engine.close, opened.close):
            loop.run_until_complete(end())
        loop.close()


def produce(store: str, base_url: str, times: int, tasks: Sequence[Any] = TASKS, *, seed: int = 0) -> list[tuple[str, float]]:
    """Each task some times, four at once, in the order of the end: attempts and what they are worth. No reward is recorded."""
    work = [(task, seed + 100 * k + n) for k in range(times) for n, task in enumerate(tasks)]
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda each: act(*each, store, base_url), work))


def give_rewards(store: str, worth: Sequence[tuple[str, float]]) -> None:
    """What people say later, of many at once; `agl.reward_later` does it for one."""

    async def write() -> None:
        opened = open_store(store)
        await opened.record([Reward(attempt_id=attempt, value=value, source="customer") for attempt, value in worth])
        await opened.close()

    with ThreadPoolExecutor(1) as pool:  # whoever calls may have a loop of its own
        pool.submit(asyncio.run, write()).result()
