"""Makes the agent trainable: passes it the model from `llm`, adds one callback, and returns a reward."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from langchain_openai import ChatOpenAI

import agentlightning as agl
from agentlightning_benchmarks.text_to_sql.agent import FULL, SHORT, Prompts, build_agent
from agentlightning_benchmarks.text_to_sql.feedback import feedback
from agentlightning_benchmarks.text_to_sql.reward import reward
from agentlightning_langchain import LightningCallback

OPTIMISABLE = ("system", "write", "repair")
"""Names of the prompts that a search may rewrite."""


async def solve(task: dict[str, Any], llm: agl.LLM) -> float:
    """Solve a `task` and return 1 or 0, with the prompts for a small model.

    A task has `question`, `schema`, `database` (a path), the gold `query`, and optionally `variants` (paths).
    """
    return await _solve(task, llm, SHORT)


async def solve_real(task: dict[str, Any], llm: agl.LLM) -> float:
    """The same with prompts for a model that follows instructions. `[prompts]` may replace those of `OPTIMISABLE`."""
    return await _solve(task, llm, replace(FULL, **{name: llm.prompt(name, default=getattr(FULL, name)) for name in OPTIMISABLE}))


async def _solve(task: dict[str, Any], llm: agl.LLM, prompts: Prompts) -> float:
    agent = build_agent(ChatOpenAI(model=llm.model, base_url=llm.base_url, api_key=llm.api_key), prompts)  # type: ignore[arg-type]
    inputs = {key: task[key] for key in ("question", "schema", "database")}
    done = await agent.ainvoke(inputs, config={"callbacks": [LightningCallback()]})
    earned = await asyncio.to_thread(reward, task, done["query"])
    if not earned:
        agl.note(feedback(done["query"], done["result"]))
    return earned
