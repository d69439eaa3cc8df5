"""What makes the agent trainable: the model that `llm` names, the adapter, and a reward."""

from __future__ import annotations

from typing import Any

from agents import MaxTurnsExceeded, ModelBehaviorError, OpenAIChatCompletionsModel, Runner, ToolCallOutputItem
from openai import AsyncOpenAI

import agentlightning as agl
from agentlightning_benchmarks.rag.agent import MAX_TURNS, Library, build_agent
from agentlightning_benchmarks.rag.index import open_index
from agentlightning_benchmarks.rag.reward import reward
from agentlightning_openai_agents import install


async def solve(task: dict[str, Any], llm: agl.LLM) -> float:
    """`task` as `tasks.py` makes it. The reward of `reward.py`; 0 for a run that never answers."""
    install()
    corpus = task["corpus"]
    library = Library(open_index(corpus["path"]), corpus["top_k"], corpus["words"])
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
        agent = build_agent(OpenAIChatCompletionsModel(llm.model, client))
        try:
            result = await Runner.run(agent, task["question"], context=library, max_turns=MAX_TURNS)
        except (MaxTurnsExceeded, ModelBehaviorError, UnicodeEncodeError):
            # It went on searching, asked for what is not there, or wrote an escaped half of a character, at which the SDK breaks.
            return 0.0
    searched = any(isinstance(item, ToolCallOutputItem) for item in result.new_items)
    return reward(str(result.final_output), [task["answer"], *task["answer_aliases"]], searched=searched)
