"""The whole tree of each kind of program: teams, agents, tools, handoffs, and calls, alone and with eight rollouts at once."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import autogen_programs as programs
import pytest
from adapter_world import World
from autogen_core import AgentId, DefaultTopicId
from shape import TOGETHER, check_shape, shape

pytestmark = [pytest.mark.usefixtures("installed"), pytest.mark.filterwarnings("ignore:Resolved model mismatch")]


@pytest.fixture
def delay() -> float:
    return 0.001


TEAMS: dict[str, tuple[Callable[[], Any], str, list[str]]] = {
    "an assistant": (
        lambda: programs.assistant(max_tool_iterations=2),
        """
        solver
          call @solver
          tool(double) @solver
          call @solver
        """,
        ["solver", "solver"],
    ),
    "RoundRobinGroupChat": (
        programs.round_robin,
        """
        RoundRobinGroupChat
          writer
            call @writer
          critic
            call @critic
          writer
            call @writer
          critic
            call @critic
        """,
        ["writer", "critic"] * 2,
    ),
    "SelectorGroupChat": (
        lambda: programs.selector(allow_repeated_speaker=True),
        """
        SelectorGroupChat
          SelectorGroupChatManager
            call @SelectorGroupChatManager
          writer
            call @writer
          SelectorGroupChatManager
            call @SelectorGroupChatManager
          critic
            call @critic
          SelectorGroupChatManager
            call @SelectorGroupChatManager
          writer
            call @writer
          SelectorGroupChatManager
            call @SelectorGroupChatManager
          critic
            call @critic
        """,
        ["writer", "critic"] * 2 + ["SelectorGroupChatManager"] * 4,
    ),
    "Swarm": (
        programs.swarm,
        """
        Swarm
          front -> expert
            call @front
            tool(transfer_to_expert) @front
          expert -> user
            call @expert
            tool(double) @expert
            call @expert
            tool(transfer_to_user) @expert
        """,
        ["front", "expert", "expert"],
    ),
    "GraphFlow": (
        programs.graph,
        """
        GraphFlow
          outline
            call @outline
          left
            call @left
          right
            call @right
          join
            call @join
        """,
        ["outline", "left", "right", "join"],
    ),
    "teams in teams": (
        programs.nested,
        """
        house
          studio
            writer
              call @writer
            critic
              call @critic
          society
            RoundRobinGroupChat
              optimist
                call @optimist
              pessimist
                call @pessimist
            call @society
        """,
        ["writer", "critic", "optimist", "pessimist", "society"],
    ),
    "AgentTool and TeamTool": (
        programs.agents_in_tools,
        """
        boss
          call @boss
          tool(helper) @boss
            helper
              call @helper
              tool(triple) @helper
              call @helper
          call @boss
          tool(pair) @boss
            pair
              one
                call @one
              two
                call @two
          call @boss
        """,
        ["boss"] * 3 + ["helper"] * 2 + ["one", "two"],
    ),
}


@pytest.mark.parametrize("name", TEAMS)
async def test_a_program_of_agentchat_has_this_tree_alone_and_with_others(world: World, name: str) -> None:
    make, expected, agents = TEAMS[name]
    await check_shape(world, lambda: make().run(task="question"), expected, agents)


CODED = """
    coder
      call @coder
      tool(double) @coder
      call @coder
    reviewer
      call @reviewer
"""
ORDERED = """
    forwarder
      boss
        call @boss
        tools
          tool(double) @boss
        call @boss
        clerk
          call @clerk
"""


async def code() -> None:
    runtime = await programs.core_runtime()
    runtime.start()
    await runtime.publish_message(programs.Order("question"), DefaultTopicId())
    await runtime.stop_when_idle()


async def order() -> None:
    runtime = await programs.core_runtime()
    runtime.start()
    answer = await runtime.send_message(programs.Order("question"), AgentId("forwarder", "default"))
    assert answer == programs.Order("done")
    await runtime.stop_when_idle()


async def test_agents_of_the_core_library_that_publish(world: World) -> None:
    await check_shape(world, code, CODED, ["coder", "coder", "reviewer"])


async def test_agents_of_the_core_library_that_wait_for_each_other(world: World) -> None:
    await check_shape(world, order, ORDERED, ["boss", "boss", "clerk"])


async def test_one_runtime_that_was_started_before_its_rollouts_serves_them_all(world: World) -> None:
    runtime = await programs.core_runtime()
    asyncio.get_running_loop().call_soon(runtime.start, context=contextvars.Context())
    await asyncio.sleep(0)

    async def rollout(number: int) -> None:
        async with world.rollout(number) as recorder:
            await runtime.publish_message(programs.Order(f"question {number}"), DefaultTopicId(source=str(number)))
            await runtime.send_message(programs.Order(f"question {number}"), AgentId("forwarder", str(number)))
            await world.settled(recorder, 6)
            while len(await world.spans(recorder, "agent")) < 6:
                await asyncio.sleep(0.01)
            await world.joined(recorder, 6)
        lines = dedent(ORDERED).strip() + "\n" + dedent(CODED).strip()
        assert sorted(shape(await world.spans(recorder)).splitlines()) == sorted(lines.splitlines())

    await asyncio.gather(*(rollout(number) for number in range(TOGETHER)))
    await runtime.stop()
