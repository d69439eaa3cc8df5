"""`ChatAnthropic` is routed, recorded, and joined, as `ChatOpenAI` is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from adapter_world import World
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_world import chat, question
from shape import shape

from agentlightning.capture.clients import clients
from agentlightning.capture.recorder import Recorder
from agentlightning_langchain import LightningCallback, install

TREE = """\
solver
  model as solver
    call @solver
  tools as solver
    tool(double) @solver
  model as solver
    call @solver"""


@tool
def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


def anthropic(recorder: Recorder, **settings: Any) -> Any:
    """A model as a user builds it from `agl.LLM`."""
    llm, model = recorder.llm, ChatAnthropic
    address: Any = {"base_url": llm.base_url.removesuffix("/v1"), "api_key": llm.api_key, "max_retries": 0}
    return model(model=llm.model, **address, **settings)  # type: ignore[call-arg]


def famous(**settings: Any) -> Any:
    """A model as it stands in somebody's code: another address, and a key of Anthropic."""
    model: Any = ChatAnthropic
    return model(model_name="claude-x", api_key="secret", max_retries=0, **settings)


@pytest.mark.parametrize("streaming", [False, True])
async def test_with_the_address_of_the_rollout_every_call_is_joined(world: World, streaming: bool) -> None:
    config: RunnableConfig = {"callbacks": [LightningCallback()]}
    for run in ("ainvoke", "invoke", "astream", "stream"):
        async with world.rollout() as recorder:
            agent: Any = create_agent(anthropic(recorder, streaming=streaming), [double], name="solver")
            if run == "ainvoke":
                await agent.ainvoke(question(), config)
            elif run == "invoke":
                await asyncio.to_thread(agent.invoke, question(), config)
            elif run == "astream":
                _ = [part async for part in agent.astream(question(), config, stream_mode="messages")]
            else:
                await asyncio.to_thread(lambda agent=agent: list(agent.stream(question(), config, stream_mode="messages")))
            await world.joined(recorder, 2)
        assert shape(await world.spans(recorder)) == TREE
        learned = await world.trajectory(recorder, agents=["solver"])
        assert [transition.trained for transition in learned.transitions] == [True, True]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("run", ["invoke", "ainvoke"])
async def test_one_module_level_model_serves_eight_rollouts_at_once(world: World, streaming: bool, run: str) -> None:
    install(models=["claude-*"])
    solver: Any = create_agent(famous(streaming=streaming), [double], name="solver")

    async def rollout(number: int) -> None:
        async with world.rollout(number) as recorder:
            if run == "ainvoke":
                await solver.ainvoke(question(number))
            else:
                await asyncio.to_thread(solver.invoke, question(number))
            await world.joined(recorder, 2)
        assert shape(await world.spans(recorder)) == TREE

    await asyncio.gather(*(rollout(number) for number in range(8)))


class Answers(BaseCallbackHandler):
    """Keeps the results of model calls."""

    def __init__(self) -> None:
        self.ids: list[Any] = []

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.ids += [generation.message.response_metadata.get("id") for [generation] in response.generations]


@pytest.mark.parametrize("kind", ["messages", "responses"])
async def test_prompts_that_start_together_are_told_apart_by_the_ids_of_their_answers(world: World, kind: str, installed: None) -> None:
    """LangChain starts all three before it sends a request, so only the answers tell which request is whose."""
    answers = Answers()
    async with world.rollout() as recorder:
        model: Any = anthropic(recorder) if kind == "messages" else chat(recorder, use_responses_api=True)
        await model.agenerate([[HumanMessage("a")], [HumanMessage("b")], [HumanMessage("c")]], callbacks=[answers])
        spans = await world.joined(recorder, 3)
    assert sorted(span.call_id or "" for span in spans) == sorted(answer.partition("_")[2] for answer in answers.ids)


async def test_an_answer_joins_by_its_id_also_where_no_request_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model class with a client that is not routed."""
    async with world.rollout() as recorder:
        callback = LightningCallback()
        clients().uninstall("agentlightning_langchain")
        for model in (anthropic(recorder), chat(recorder, use_responses_api=True), chat(recorder)):
            await model.ainvoke("question", {"callbacks": [callback]})
        await world.joined(recorder, 3)


async def test_agents_with_models_of_two_vendors_share_a_rollout(world: World) -> None:
    install(models=["claude-*", "gpt-4o-*"])
    openai: Any = ChatOpenAI
    solver: Any = create_agent(famous(), [double], name="solver")
    judge: Any = create_agent(openai(model="gpt-4o-mini", api_key="secret", base_url="http://127.0.0.1:9/v1"), [], name="judge")
    async with world.rollout() as recorder:
        await solver.ainvoke(question())
        await judge.ainvoke(question())
        await world.joined(recorder, 3)
    learned = await world.trajectory(recorder)
    assert [transition.agent for transition in learned.transitions] == ["solver", "solver", "judge"]
