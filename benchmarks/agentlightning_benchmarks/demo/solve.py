"""What makes the agent trainable: the model that `llm` names, one callback, a reward."""

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
"""For a calculator call that worked, whatever the answer."""


async def solve(task: dict[str, Any], llm: agl.LLM) -> float:
    """`task` has `question` and `answer`. 1 for the right answer after a calculator call, 0.1 for a call that worked, else 0."""
    agent = build_agent(ChatOpenAI(model=llm.model, base_url=llm.base_url, api_key=llm.api_key, max_tokens=24))  # type: ignore[arg-type]
    try:
        result = await agent.ainvoke(
            {"messages": conversation(task["question"])}, config={"callbacks": [LightningCallback()], "recursion_limit": 6}
        )
    except GraphRecursionError:  # it went on calling and never answered
        return 0.0
    return reward(result["messages"], task)


def reward(messages: list[Any], task: dict[str, Any]) -> float:
    """See `solve`. Only what came after the question counts."""
    own = messages[max(index for index, message in enumerate(messages) if message.type == "human") + 1 :]
    worked = any(message.type == "tool" and not str(message.content).startswith("error") for message in own)
    last = own[-1] if own else None
    if not worked or not isinstance(last, AIMessage):
        return 0.0
    answer, right = number_in(str(last.content)), number_in(str(task["answer"]))
    return 1.0 if answer is not None and answer == right else CALLED
