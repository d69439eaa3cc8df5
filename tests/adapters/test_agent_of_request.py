"""Each adapter tells the gateway the agent of a request before the engine answers it, so that the agent's policy does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from adapter_world import open_world
from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner
from autogen_agentchat.agents import AssistantAgent
from autogen_ext.models.openai import OpenAIChatCompletionClient
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from openai import AsyncOpenAI

import agentlightning_autogen
import agentlightning_langchain
import agentlightning_openai_agents
from agentlightning.contracts.policies import PolicyChoice
from agentlightning.types import LLM

POLICIES = PolicyChoice({"rest": ("nobody",), "writer": ("write",), "editor": ("edit *", "r\u00e9daction")})
NAMES = ["write", "edit 2", "r\u00e9daction"]
INFO: Any = {"vision": False, "function_calling": True, "json_output": False, "family": "unknown", "structured_output": False}


def client(llm: LLM) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0)


async def langchain_agent(name: str, llm: LLM) -> None:
    model: Any = ChatOpenAI(model=llm.model, base_url=llm.base_url, api_key=llm.api_key, max_retries=0)  # type: ignore[arg-type]
    await create_agent(model, [], name=name).ainvoke({"messages": [("user", "hi")]})  # type: ignore[arg-type]


async def langgraph_node(name: str, llm: LLM) -> None:
    model: Any = ChatOpenAI(model=llm.model, base_url=llm.base_url, api_key=llm.api_key, max_retries=0)  # type: ignore[arg-type]

    async def ask(state: MessagesState) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node(name, ask).add_edge(START, name).compile()
    await graph.ainvoke({"messages": [("user", "hi")]})  # type: ignore[arg-type]


async def chat_completions(name: str, llm: LLM) -> None:
    await Runner.run(Agent(name=name, model=OpenAIChatCompletionsModel(llm.model, openai_client=client(llm))), "hi")


async def responses(name: str, llm: LLM) -> None:
    await Runner.run(Agent(name=name, model=OpenAIResponsesModel(llm.model, openai_client=client(llm))), "hi")


async def autogen(name: str, llm: LLM) -> None:
    model = OpenAIChatCompletionClient(model=llm.model, base_url=llm.base_url, api_key=llm.api_key, max_retries=0, model_info=INFO)
    await AssistantAgent(name, model).run(task="hi")


@pytest.mark.parametrize(
    ("adapter", "run", "names"),
    [
        (agentlightning_langchain, langchain_agent, NAMES),
        (agentlightning_langchain, langgraph_node, NAMES),
        (agentlightning_openai_agents, chat_completions, NAMES),
        (agentlightning_openai_agents, responses, NAMES),
        (agentlightning_autogen, autogen, ["write", "r\u00e9daction"]),  # a name is a Python identifier
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_the_policy_of_an_agent_answers_its_requests(
    adapter: Any, run: Callable[[str, LLM], Awaitable[None]], names: list[str], tokenizer_folder: Path
) -> None:
    adapter.install()
    try:
        async with open_world(tokenizer_folder, lambda *_: "yes", policies=POLICIES) as world:
            for name in names:
                async with world.rollout() as recorder:
                    await run(name, recorder.llm)
                learned = await world.trajectory(recorder)
                [transition] = learned.transitions
                assert transition.agent == name
                assert transition.policy == POLICIES.of_agent(name) != "rest"
    finally:
        adapter.uninstall()
