"""The AutoGen adapter keeps the contract that every adapter keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_ext.models.openai import OpenAIChatCompletionClient

import agentlightning_autogen
from agentlightning.testing.adapter_contract import AdapterContract
from agentlightning.types import LLM

INFO: Any = {"vision": False, "function_calling": True, "json_output": False, "family": "unknown", "structured_output": False}


class TestAutoGen(AdapterContract):
    adapter = agentlightning_autogen

    async def run_agent(self, llm: LLM, tool: Callable[[int], int], question: str) -> str:
        client = OpenAIChatCompletionClient(model=llm.model, base_url=llm.base_url, api_key=llm.api_key, max_retries=0, model_info=INFO)
        agent = AssistantAgent("solver", client, tools=[tool], reflect_on_tool_use=True)
        return (await agent.run(task=question)).messages[-1].content  # type: ignore[union-attr]
