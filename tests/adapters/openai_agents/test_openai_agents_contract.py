"""The adapter of the OpenAI Agents SDK keeps the contract that every adapter keeps, with both of the SDK's APIs."""

from __future__ import annotations

from collections.abc import Callable

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
from openai import AsyncOpenAI

import agentlightning_openai_agents
from agentlightning.testing.adapter_contract import AdapterContract
from agentlightning.types import LLM


class TestChatCompletions(AdapterContract):
    adapter = agentlightning_openai_agents
    model: type[OpenAIChatCompletionsModel] | type[OpenAIResponsesModel] = OpenAIChatCompletionsModel

    async def run_agent(self, llm: LLM, tool: Callable[[int], int], question: str) -> str:
        client = AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0)
        agent = Agent(name="solver", tools=[function_tool(tool)], model=self.model(llm.model, openai_client=client))
        return (await Runner.run(agent, question)).final_output


class TestResponses(TestChatCompletions):
    model = OpenAIResponsesModel
