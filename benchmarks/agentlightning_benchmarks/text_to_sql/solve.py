"""What makes the agent trainable: the model that `llm` names, one callback, a reward."""

from __future__ import annotations

import asyncio
from typing import Any

from langchain_openai import ChatOpenAI

import agentlightning as agl
from agentlightning_benchmarks.text_to_sql.agent import build_agent
from agentlightning_benchmarks.text_to_sql.reward import reward
from agentlightning_langchain import LightningCallback


async def solve(task: dict[str, Any], llm: agl.LLM) -> float:
    """`task` has `question`, `schema`, `database` (a path), `query` (the gold one), and maybe `variants` (paths). 1 or 0."""
    agent = build_agent(ChatOpenAI(model=llm.model, base_url=llm.base_url, api_key=llm.api_key))  # type: ignore[arg-type]
    inputs = {key: task[key] for key in ("question", "schema", "database")}
    done = await agent.ainvoke(inputs, config={"callbacks": [LightningCallback()]})
    return await asyncio.to_thread(reward, task, done["query"])
