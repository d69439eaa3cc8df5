"""Makes the agent trainable: passes it the model from `llm`, adds one callback, and returns a reward."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from langgraph.errors import GraphRecursionError

import agentlightning as agl
from agentlightning_benchmarks.demo.agent import build_agent, conversation
from agentlightning_benchmarks.demo.tasks import number_in
from agentlightning_langchain import LightningCallback

CALLED = 0.1
"""Reward of a successful calculator call with a wrong answer."""


async def solve(task: dict[str, Any], llm: agl.LLM) -> float:
    """Solve a `task` with `question` and `answer`.

    The reward is 1 for the right answer after a calculator call, 0.1 for a successful call with a wrong answer, and 0 otherwise.
    """
    agent = build_agent(ChatOpenAI(model=llm.model, base_url=llm.base_url, api_key=llm.api_key, max_tokens=24))  # type: ignore[arg-type]
    try:
        result = await agent.ainvoke(
            {"messages": conversation(task["question"])}, config={"callbacks": [LightningCallback()], "recursion_limit": 6}
        )
    except GraphRecursionError:  # the agent kept calling and never answered
        return 0.0
    return reward(result["messages"], task)


def reward(messages: list[Any], task: dict[str, Any]) -> float:
    """Return the reward described in `solve`. Only messages after the question count."""
    own = messages[max(index for index, message in enumerate(messages) if message.type == "human") + 1 :]
    worked = any(message.type == "tool" and not str(message.content).startswith("error") for message in own)
    last = own[-1] if own else None
    if not worked or not isinstance(last, AIMessage):
        return 0.0
    answer, right = number_in(str(last.content)), number_in(str(task["answer"]))
    return 1.0 if answer is not None and answer == right else CALLED
