"""A task that a tiny model with random weights can learn: to write letters. Two turns of one conversation."""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI

import agentlightning as agl

TASKS = [{"id": str(n), "text": text} for n, text in enumerate(["abc", "xyz", "hello", "12+3", "why?", "one two"])]


def score(text: str) -> float:
    """How many of the first characters are letters: random weights say something about that, and can learn it."""
    return sum(character.isalpha() for character in text[:8]) / 8


async def ask(llm: agl.LLM, messages: list[Any], tokens: int = 8) -> str:
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        answer = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=tokens)
    return answer.choices[0].message.content or ""


async def two_turns(task: Any, llm: agl.LLM) -> float:
    messages: list[Any] = [{"role": "user", "content": task["text"]}]
    for _ in range(2):
        text = await ask(llm, messages)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "more"}]
    return score(text)
