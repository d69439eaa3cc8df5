"""Makes the agent trainable: wraps the model from `llm` in a recording client, and returns a reward."""

from __future__ import annotations

from functools import cache
from typing import Any

from autogen_agentchat.base import TaskResult
from autogen_agentchat.messages import TextMessage
from autogen_core.models import ModelInfo
from autogen_ext.models.openai import OpenAIChatCompletionClient

import agentlightning as agl
from agentlightning_autogen import LightningChatCompletionClient
from agentlightning_benchmarks.math.agent import FULL, SHORT, Prompts, build_agent
from agentlightning_benchmarks.math.reward import reward

MODEL_INFO = ModelInfo(vision=False, function_calling=True, json_output=False, family="unknown", structured_output=False)


@cache
def model_client(model: str, base_url: str) -> OpenAIChatCompletionClient:
    """Return the client shared by all concurrent rollouts, because creating one is slower than a call. Each rollout supplies its own
    key."""
    return OpenAIChatCompletionClient(model=model, base_url=base_url, api_key="the rollout's", model_info=MODEL_INFO)


async def solve(task: dict[str, Any], llm: agl.LLM) -> float:
    """Solve a `task` with `question` and `answer`, with the prompts for a small model. The reward is 1 for the right answer, else 0."""
    return await _solve(task, llm, SHORT)


async def solve_real(task: dict[str, Any], llm: agl.LLM) -> float:
    """The same with prompts for a model that follows instructions."""
    return await _solve(task, llm, FULL)


async def _solve(task: dict[str, Any], llm: agl.LLM, prompts: Prompts) -> float:
    agent = build_agent(LightningChatCompletionClient(model_client(llm.model, llm.base_url)), prompts)
    return reward(answer_text(await agent.run(task=task["question"])), task["answer"])


def answer_text(result: TaskResult) -> str | None:
    """Return the agent's answer, or None if its last allowed model call was a tool call."""
    last = result.messages[-1]
    return last.content if isinstance(last, TextMessage) and last.source == "solver" else None
