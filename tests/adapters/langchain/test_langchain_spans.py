"""What becomes a span, what it is called, and what it hangs from."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from adapter_world import World, earned
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_tool_call
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import ToolException, tool
from langchain_world import chat
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel

import agentlightning as agl
from agentlightning.types import Span
from agentlightning_langchain import LightningCallback, current_span_id
from agentlightning_langchain.values import plain

QUESTION: Any = {"messages": [("user", "what is 1 + 2?")]}


@tool
def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


@tool
def broken(x: int) -> int:
    """Always fails."""
    raise ValueError(f"no {x} here")


class Call(BaseModel):
    x: int = 1


def with_callback() -> Any:
    return {"callbacks": [LightningCallback()]}


def tree(spans: Any) -> dict[str, list[str]]:
    """Names of the spans below each span; `` stands for the top."""
    names = {span.id: span.name for span in spans}
    below: dict[str, list[str]] = {}
    for span in sorted(spans, key=lambda span: span.started):
        below.setdefault(names[span.parent_id] if span.parent_id else "", []).append(span.name)
    return below


def named(spans: Any, name: str) -> Span:
    return next(span for span in spans if span.name == name)


async def test_an_agent_is_a_tree_of_its_nodes_tools_and_model_calls(world: World) -> None:
    async with world.rollout() as recorder:
        agent = create_agent(chat(recorder, temperature=0.5), [double], name="writer")
        await agent.ainvoke(QUESTION, with_callback())
        llm = await world.joined(recorder, 2)
        spans = (await world.records(recorder)).spans
    assert tree(spans) == {
        "": ["writer"], "writer": ["model", "tools", "model"], "model": ["scripted", "scripted"], "tools": ["double"],
    }  # fmt: skip
    assert [span.agent for span in llm] == ["writer", "writer"]
    assert [span.attributes["step"] for span in llm] == [1, 3]
    assert llm[0].attributes["node"] == "model"
    assert llm[0].attributes["sampling"]["temperature"] == 0.5
    assert llm[0].attributes["tools"] == ["double"]
    assert [span.attributes["finish_reason"] for span in llm] == ["tool_calls", "stop"]
    assert llm[0].attributes["usage"]["output_tokens"] > 0
    used = named(spans, "double")
    assert (used.kind, used.attributes["input"], used.attributes["output"]) == ("tool", {"x": 3}, "6")
    assert used.attributes["tool_call_id"].startswith("call_")
    assert used.agent == "writer"
    assert all(span.ended is not None and span.started <= span.ended for span in spans)


async def test_code_that_is_taken_out_of_the_rollout_leaves_no_spans(world: World) -> None:
    async with world.rollout() as recorder:
        config = with_callback()
        FakeListChatModel(responses=["a"]).invoke("mine", config)
        with agl.attach(None):
            FakeListChatModel(responses=["b"]).invoke("a judge's", config)
        spans = (await world.records(recorder)).spans
    assert [span.kind for span in spans].count("llm") == 1


@tool
def search(x: int) -> list[str]:
    """Finds nothing."""
    return []


@tool
def refuse(x: int) -> str:
    """Says what is wrong."""
    raise ToolException(f"no {x} here")


@wrap_tool_call
async def handled(request: Any, handler: Any) -> Any:
    try:
        return await handler(request)
    except ValueError as error:
        return ToolMessage(str(error), tool_call_id=request.tool_call["id"], status="error")


async def test_a_tool_that_fails_is_a_fact_of_the_call_that_asked_for_it(world: World) -> None:
    refuse.handle_tool_error = True
    for used, middleware in ((broken, [handled]), (refuse, [])):
        async with world.rollout() as recorder:
            await create_agent(chat(recorder), [used], name="writer", middleware=middleware).ainvoke(QUESTION, with_callback())
        assert earned(await world.trajectory(recorder, tool_failed=-0.2, tool_empty=-1.0)) == [[("tool_failed", -0.2)], []]


async def test_a_tool_that_gives_nothing_is_a_fact_of_the_call_that_asked_for_it(world: World) -> None:
    async with world.rollout() as recorder:
        await create_agent(chat(recorder), [search], name="writer").ainvoke(QUESTION, with_callback())
    assert earned(await world.trajectory(recorder, tool_failed=-1.0, tool_empty=-0.1)) == [[("tool_empty", -0.1)], []]


async def test_a_tool_that_fails_is_a_span_with_its_error(world: World) -> None:
    async with world.rollout() as recorder:
        agent = create_agent(chat(recorder), [broken], name="writer")
        with pytest.raises(ValueError, match="no 3 here"):
            await agent.ainvoke(QUESTION, with_callback())
        spans = (await world.records(recorder)).spans
    assert named(spans, "broken").attributes["error"] == "ValueError: no 3 here"
    assert named(spans, "writer").attributes["error"] == "ValueError: no 3 here"


async def test_nodes_of_a_plain_graph_are_agents_also_side_by_side_and_in_subgraphs(world: World) -> None:
    async with world.rollout() as recorder:
        model = chat(recorder)

        async def ask(state: MessagesState) -> Any:
            return {"messages": [await model.ainvoke(state["messages"])]}

        def ask_blocking(state: MessagesState) -> Any:
            return {"messages": [model.invoke(state["messages"])]}

        inner = StateGraph(MessagesState).add_node("draft", ask).add_edge(START, "draft").compile()
        graph = StateGraph(MessagesState)
        graph.add_node("left", ask).add_node("right", ask_blocking).add_node("write", inner)
        graph.add_node("unnamed", create_agent(model, [])).add_node("last", create_agent(model, [], name="editor"))
        graph.add_edge(START, "left").add_edge(START, "right").add_edge("left", "write")
        graph.add_edge("write", "unnamed").add_edge("unnamed", "last")
        await graph.compile().ainvoke(QUESTION, with_callback())
        llm = await world.joined(recorder, 5)
        spans = (await world.records(recorder)).spans
    assert sorted(span.agent or "" for span in llm) == ["editor", "left", "right", "unnamed", "write"]
    top = next(span for span in spans if span.parent_id is None)
    assert top.name == "LangGraph"
    assert sorted(span.name for span in spans if span.parent_id == top.id) == ["last", "left", "right", "unnamed", "write"]
    assert next(span for span in llm if span.agent == "write").attributes["path"] == "write/draft"
    assert tree(spans)["last"] == ["editor"]


async def test_an_agent_inside_a_tool_hangs_from_the_tool_and_has_its_own_name(world: World) -> None:
    async with world.rollout() as recorder:
        model = chat(recorder)
        helper, nameless = create_agent(model, [], name="helper"), create_agent(model, [])

        @tool
        async def ask_helper(question: str) -> str:
            """Asks the helper."""
            return (await helper.ainvoke({"messages": [("user", question)]}))["messages"][-1].text

        @tool
        def ask_nameless(question: str) -> str:
            """Asks the other one."""
            return nameless.invoke({"messages": [("user", question)]})["messages"][-1].text

        await create_agent(model, [ask_helper], name="boss").ainvoke(QUESTION, with_callback())
        await create_agent(model, [ask_nameless], name="chief").ainvoke(QUESTION, with_callback())
        llm = await world.joined(recorder, 6)
        spans = (await world.records(recorder)).spans
    assert sorted(span.agent or "" for span in llm) == ["ask_nameless", "boss", "boss", "chief", "chief", "helper"]
    assert tree(spans)["ask_helper"] == ["helper"]
    assert tree(spans)["ask_nameless"] == ["LangGraph"]


async def test_what_is_only_plumbing_is_no_span(world: World) -> None:
    async with world.rollout() as recorder:
        chain = RunnableLambda(lambda text: f"{text}!") | chat(recorder) | RunnableLambda(lambda message: message.text)
        await asyncio.to_thread(chain.invoke, "hello", with_callback())
        spans = (await world.records(recorder)).spans
    assert [(span.kind, span.parent_id, span.agent) for span in spans] == [("llm", None, None)]


async def test_a_retriever_is_a_tool_that_nobody_asked_for(world: World) -> None:
    class Shelf(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return [Document(f"about {query}", metadata={"page": 3})]

    async with world.rollout() as recorder:
        await Shelf().ainvoke("numbers", with_callback())
        (span,) = (await world.records(recorder)).spans
    assert (span.kind, span.name, span.attributes["input"]) == ("tool", "Shelf", "numbers")
    assert span.attributes["output"][0]["page_content"] == "about numbers"


async def test_tasks_of_the_functional_api_are_agents(world: World) -> None:
    async with world.rollout() as recorder:
        model = chat(recorder)

        @task
        async def outline(topic: str) -> str:
            return (await model.ainvoke(topic)).text

        @entrypoint()
        async def essay(topic: str) -> str:
            return await outline(topic)

        await essay.ainvoke("cats", with_callback())
        (llm,) = await world.joined(recorder, 1)
    assert llm.agent == "outline"


async def test_a_tool_knows_its_span(world: World) -> None:
    ids = []

    @tool
    async def scored(x: int) -> int:
        """Remembers its span."""
        ids.append(current_span_id())
        return x

    async with world.rollout() as recorder:
        await create_agent(chat(recorder), [scored]).ainvoke(QUESTION, with_callback())
        spans = (await world.records(recorder)).spans
    assert ids == [named(spans, "scored").id]
    assert current_span_id() is None


async def test_an_interrupt_is_no_error(world: World) -> None:
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.types import Command, interrupt

    async with world.rollout() as recorder:

        def confirm(state: MessagesState) -> Any:
            return {"messages": [("ai", interrupt("sure?"))]}

        graph = StateGraph(MessagesState).add_node("confirm", confirm).add_edge(START, "confirm").compile(checkpointer=InMemorySaver())
        config = {**with_callback(), "configurable": {"thread_id": "1"}}
        await graph.ainvoke(QUESTION, config)
        await graph.ainvoke(Command(resume="yes"), config)
        spans = [span for span in (await world.records(recorder)).spans if span.name == "confirm"]
    assert [span.attributes.get("steered") for span in spans] == ["GraphInterrupt", None]
    assert not [span for span in spans if "error" in span.attributes]


async def test_outside_a_rollout_nothing_is_recorded_and_nothing_fails(world: World, installed: None) -> None:
    async with world.rollout() as recorder:
        pass
    model = FakeListChatModel(responses=["hi"])
    assert (await model.ainvoke("hello", with_callback())).text == "hi"
    assert (await create_agent(model, []).ainvoke(QUESTION))["messages"][-1].text == "hi"
    assert (await world.store.records(recorder.attempt.id)).spans == ()


def test_any_value_has_a_plain_form() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    loop: list[Any] = []
    loop.append(loop)
    given = {1: float("nan"), "message": AIMessage("hi"), "odd": Odd(), "set": {1}, "long": "x" * 70_000, "call": Call()}
    made = plain(given)
    assert (made["1"], made["message"], made["set"], made["call"]) == ("nan", {"role": "ai", "content": "hi"}, [1], {"x": 1})
    assert made["odd"] == "<Odd: RuntimeError while it was read>"
    assert made["long"].endswith("… (4464 more characters)")
    json.dumps([made, plain(loop)], allow_nan=False)
