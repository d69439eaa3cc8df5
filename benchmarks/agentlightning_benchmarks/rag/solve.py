"""Makes the agent trainable: passes it the model from `llm`, installs the adapter, and returns a reward."""

from __future__ import annotations

from typing import Any

from agents import MaxTurnsExceeded, ModelBehaviorError, OpenAIChatCompletionsModel, Runner, ToolCallOutputItem
from openai import AsyncOpenAI

import agentlightning as agl
from agentlightning_benchmarks.rag.agent import FULL, MAX_TURNS, SHORT, Library, asked, build_agent
from agentlightning_benchmarks.rag.index import open_index
from agentlightning_benchmarks.rag.reward import reward
from agentlightning_openai_agents import install


async def solve(task: dict[str, Any], llm: agl.LLM) -> float:
    """Solve a `task` from `tasks.py` with the instructions for a small model. Return its reward. A run without an answer earns 0."""
    return await _solve(task, llm, SHORT)


async def solve_real(task: dict[str, Any], llm: agl.LLM) -> float:
    """The same with instructions and a worked example for a model that follows them."""
    return await _solve(task, llm, FULL, example=True)


async def _solve(task: dict[str, Any], llm: agl.LLM, instructions: str, *, example: bool = False) -> float:
    install()
    corpus = task["corpus"]
    library = Library(open_index(corpus["path"]), corpus["top_k"], corpus["words"])
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
        agent = build_agent(OpenAIChatCompletionsModel(llm.model, client), instructions)
        try:
            result = await Runner.run(agent, asked(task["question"], example=example), context=library, max_turns=MAX_TURNS)
        except (MaxTurnsExceeded, ModelBehaviorError, UnicodeEncodeError):
            # The agent kept searching, called an unknown tool, or wrote an escaped lone surrogate that the SDK rejects.
            return 0.0
    searched = any(isinstance(item, ToolCallOutputItem) for item in result.new_items)
    return reward(str(result.final_output), [task["answer"], *task["answer_aliases"]], searched=searched)
