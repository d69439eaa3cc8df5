"""The whole tree of each kind of graph: agents, tools, and calls, alone and with eight rollouts at once."""

from __future__ import annotations

import asyncio
import re
from textwrap import dedent
from typing import Any

import graph_programs as programs
import pytest
from adapter_world import World
from shape import check_shape, shape

import agentlightning_langchain
from agentlightning.types import Sampling

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")


def planned(prompt: str, sampling: Sampling) -> str:
    """The first call of the plan that the conversation has not made yet, else its last text."""
    plans = re.findall(r"plan: (.*?)(?:<\|im_end\|>|\n|$)", prompt)
    if not plans:
        return '{"x": 6}' if "JSON" in prompt else "no plan"
    *calls, text = plans[0].split(" | ")
    history = prompt.partition("<|im_end|>")[2]
    return next((call for call in calls if call.partition("(")[0] not in history), text)


@pytest.fixture
def script() -> Any:
    return planned


@pytest.fixture(autouse=True)
def installed() -> None:
    agentlightning_langchain.install(models=["gpt-4o-mini"])


@pytest.fixture
def delay() -> float:
    return 0.001


LOOP = """
    {0}
      {1} as {0}
        call @{0}
      tools as {0}
        tool(double) @{0}
      {1} as {0}
        call @{0}
"""


async def check(world: World, graph: Any, expected: str, agents: list[str | None], given: Any = programs.QUESTION) -> None:
    await check_shape(world, lambda: graph.ainvoke(given), expected, agents)


async def test_create_agent_gives_one_agent(world: World) -> None:
    await check(world, programs.agent("solver"), LOOP.format("solver", "model"), ["solver", "solver"])


async def test_create_agent_without_a_name_is_an_agent(world: World) -> None:
    expected = LOOP.format("agent", "model").replace("    agent\n", "    LangGraph as agent\n", 1)
    await check(world, programs.agent(), expected, ["agent", "agent"])


async def test_create_react_agent_gives_one_agent(world: World) -> None:
    await check(world, programs.react_agent("writer"), LOOP.format("writer", "agent"), ["writer", "writer"])


async def test_create_react_agent_without_a_name_is_an_agent(world: World) -> None:
    expected = """
        LangGraph as agent
          agent
            call @agent
          tools as agent
            tool(double) @agent
          agent
            call @agent
    """
    await check(world, programs.react_agent(), expected, ["agent", "agent"])


async def test_hooks_and_a_response_format_belong_to_the_agent(world: World) -> None:
    expected = """
        writer
          pre_model_hook as writer
          agent as writer
            call @writer
          post_model_hook as writer
          tools as writer
            tool(double) @writer
          pre_model_hook as writer
          agent as writer
            call @writer
          post_model_hook as writer
          generate_structured_response as writer
            call @writer
    """
    await check(world, programs.react_agent_with_hooks(), expected, ["writer"] * 3)


async def test_each_node_of_a_workflow_is_an_agent(world: World) -> None:
    expected = """
        essay
          plan
            call @plan
          write
            call @write
    """
    await check(world, programs.workflow(), expected, ["plan", "write"])


async def test_a_hand_written_loop_with_a_tool_node_is_one_agent(world: World) -> None:
    await check(world, programs.hand_written_loop("asker"), LOOP.format("asker", "ask"), ["asker", "asker"])


async def test_a_tool_node_of_a_workflow_serves_the_agent_that_asked(world: World) -> None:
    expected = """
        two
          outline
            call @outline
          ask
            call @ask
          tools
            tool(double) @ask
    """
    await check(world, programs.own_tool_loop(), expected, ["outline", "ask"])


async def test_a_graph_in_a_graph_in_a_graph_keeps_its_names(world: World) -> None:
    expected = """
        LangGraph as None
          team
            LangGraph as team
              write as team/write
                LangGraph as write
                  draft as write/draft
                    call @write/draft
                  polish as write/polish
                    call @write/polish
              check as team/check
                LangGraph as check
                  agent as check
                    call @check
                  tools as check
                    tool(double) @check
                  agent as check
                    call @check
              alone as team/alone
                LangGraph as alone
                  inner as alone
                    call @alone
          last
            editor
              agent as editor
                call @editor
          loop
            LangGraph as loop
              ask as loop
                call @loop
          delegate
            LangGraph as delegate
              agent as delegate
                call @delegate
              tools as delegate
                tool(double) @delegate
              agent as delegate
                call @delegate
    """
    agents = ["write/draft", "write/polish", "check", "check", "alone", "editor", "loop", "delegate", "delegate"]
    await check(world, programs.nested(), expected, [*agents])


async def test_a_fan_out_with_send_is_one_agent_many_times(world: World) -> None:
    expected = """
        LangGraph as None
          worker
            call @worker
          worker
            call @worker
          worker
            call @worker
          join
            call @join
    """
    await check(world, programs.fan_out(), expected, ["worker"] * 3 + ["join"], {"texts": []})


async def test_tasks_of_the_functional_api_are_agents_too(world: World) -> None:
    expected = """
        LangGraph as essay
          essay
            outline
              call @outline
            helper
              agent as helper
                call @helper
              tools as helper
                tool(double) @helper
              agent as helper
                call @helper
            call @essay
    """
    await check(world, programs.functional(), expected, ["outline", "helper", "helper", "essay"], "cats")


async def test_a_chain_without_a_graph_has_no_agent(world: World) -> None:
    await check(world, programs.chain(), "call @None", [None], {"topic": "cats"})


async def test_agents_graphs_and_models_in_tools_hang_from_the_tools(world: World) -> None:
    expected = """
        boss
          model as boss
            call @boss
          tools as boss
            tool(ask_helper) @boss
              helper
                model as helper
                  call @helper
                tools as helper
                  tool(double) @helper
                model as helper
                  call @helper
          model as boss
            call @boss
          tools as boss
            tool(ask_nameless) @boss
              LangGraph as ask_nameless
                agent as ask_nameless
                  call @ask_nameless
                tools as ask_nameless
                  tool(double) @ask_nameless
                agent as ask_nameless
                  call @ask_nameless
          model as boss
            call @boss
          tools as boss
            tool(ask_studio) @boss
              LangGraph as ask_studio
                draft as ask_studio/draft
                  call @ask_studio/draft
                polish as ask_studio/polish
                  call @ask_studio/polish
          model as boss
            call @boss
          tools as boss
            tool(ask_model) @boss
              call @boss
          model as boss
            call @boss
    """
    agents = ["helper", "helper", "ask_nameless", "ask_nameless", "ask_studio/draft", "ask_studio/polish"]
    await check(world, programs.agents_in_tools(), expected, [*agents, *["boss"] * 6])


async def test_langgraph_supervisor_names_its_experts(world: World) -> None:
    pytest.importorskip("langgraph_supervisor")
    expected = """
        LangGraph as None
          supervisor
            supervisor
              agent as supervisor
                call @supervisor
              tools as supervisor
                tool(transfer_to_math_expert) @supervisor
          math_expert
            math_expert
              agent as math_expert
                call @math_expert
              tools as math_expert
                tool(double) @math_expert
              agent as math_expert
                call @math_expert
          supervisor
            supervisor
              agent as supervisor
                call @supervisor
              tools as supervisor
                tool(transfer_to_research_expert) @supervisor
          research_expert
            research_expert
              agent as research_expert
                call @research_expert
              tools as research_expert
                tool(triple) @research_expert
              agent as research_expert
                call @research_expert
          supervisor
            supervisor
              agent as supervisor
                call @supervisor
    """
    agents = ["supervisor", "math_expert", "math_expert", "supervisor", "research_expert", "research_expert", "supervisor"]
    await check(world, programs.supervisor(), expected, [*agents])


async def test_langgraph_swarm_names_its_agents(world: World) -> None:
    pytest.importorskip("langgraph_swarm")
    expected = """
        LangGraph as None
          Alice
            Alice
              agent as Alice
                call @Alice
              tools as Alice
                tool(double) @Alice
              agent as Alice
                call @Alice
              tools as Alice
                tool(transfer_to_bob) @Alice
          Bob
            Bob
              model as Bob
                call @Bob
              tools as Bob
                tool(triple) @Bob
              model as Bob
                call @Bob
    """
    await check(world, programs.swarm(), expected, ["Alice", "Alice", "Bob", "Bob"])


async def test_deepagents_names_its_sub_agents(world: World) -> None:
    pytest.importorskip("deepagents")
    expected = """
        LangGraph as agent
          model as agent
            call @agent
          tools as agent
            tool(task) @agent
              helper
                model as helper
                  call @helper
                tools as helper
                  tool(double) @helper
                model as helper
                  call @helper
          model as agent
            call @agent
    """
    await check_shape(
        world,
        lambda: programs.deep_agent().ainvoke(programs.QUESTION),
        expected,
        ["agent", "helper", "helper", "agent"],
        without="Middleware",
    )


async def test_every_way_to_run_a_graph_has_the_same_tree(world: World) -> None:
    graph = programs.react_agent("writer")

    async def ainvoke() -> None:
        await graph.ainvoke(programs.QUESTION)

    async def astream() -> None:
        _ = [part async for part in graph.astream(programs.QUESTION, stream_mode="messages")]

    async def events() -> None:
        _ = [event async for event in graph.astream_events(programs.QUESTION, version="v2")]

    async def invoke() -> None:
        await asyncio.to_thread(graph.invoke, programs.QUESTION)

    async def stream() -> None:
        await asyncio.to_thread(lambda: list(graph.stream(programs.QUESTION, stream_mode="messages")))

    async def batch() -> None:
        await asyncio.to_thread(graph.batch, [programs.QUESTION])

    for run in (ainvoke, astream, events, invoke, stream, batch):
        async with world.rollout() as recorder:
            await run()
            await world.joined(recorder, 2)
        assert shape(await world.spans(recorder)) == dedent(LOOP.format("writer", "agent")).strip(), run.__name__


async def test_the_name_of_a_run_is_no_agent(world: World) -> None:
    """A tracer's `run_name` may differ from call to call."""
    async with world.rollout() as recorder:
        for graph in (programs.react_agent("writer"), programs.workflow(), programs.hand_written_loop(None)):
            await graph.ainvoke(programs.QUESTION, {"run_name": "question 17"})
    learned = await world.trajectory(recorder, agents=["writer"])
    assert [transition.agent for transition in learned.transitions] == ["writer", "writer", "plan", "write", "ask", "ask"]
    assert [transition.trained for transition in learned.transitions] == [True] * 2 + [False] * 4
