"""Unchanged programs after `install()`: each request is a transition that knows its rollout, agent, turn, parent, tools and tokens."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import autogen_programs as programs
import pytest
from adapter_world import World, earned, named, tree
from autogen_agentchat.base import TaskResult
from autogen_agentchat.messages import HandoffMessage

pytestmark = pytest.mark.usefixtures("installed")


async def streamed(program: Any) -> TaskResult:
    return [item async for item in program.run_stream(task="question")][-1]


async def whole(program: Any) -> TaskResult:
    return await program.run(task="question")


async def turns(world: World, recorder: Any) -> list[tuple[str | None, int]]:
    return [(t.agent, t.turn) for t in (await world.trajectory(recorder)).transitions]


@pytest.mark.parametrize("run", [whole, streamed])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_assistant_calls_a_tool_and_reflects_on_it(world: World, run: Any, stream: bool) -> None:
    async with world.rollout() as recorder:
        result = await run(programs.assistant(reflect_on_tool_use=True, model_client_stream=stream))
        first, second = await world.joined(recorder, 2)
        spans = await world.spans(recorder)
    assert result.messages[-1].to_text() == "it is 6"
    assert tree(spans) == {"": ["solver"], "solver": ["gpt-4o-mini", "double", "gpt-4o-mini"]}
    tool = named(spans, "double")
    assert (tool.kind, tool.agent, tool.attributes["input"], tool.attributes["output"]) == ("tool", "solver", {"x": 3}, "6")
    assert tool.attributes["tool_call_id"].startswith("call_")
    assert first.attributes["tools"] == ["double", "triple"]
    assert (first.attributes["finish_reason"], second.attributes["finish_reason"]) == ("function_calls", "stop")
    assert first.attributes["sampling"].get("stream", False) is stream
    assert named(spans, "solver").attributes["output"] == "it is 6"
    assert await turns(world, recorder) == [("solver", 0), ("solver", 1)]


@pytest.mark.parametrize("run", [whole, streamed])
async def test_a_tool_that_fails_or_gives_nothing_is_a_fact_of_the_call_that_asked_for_it(world: World, run: Any) -> None:
    async with world.rollout() as recorder:
        plan = "CALL broken(3) | CALL search(3) | CALL double(3) | done"
        await run(programs.agent("solver", plan, tools=[programs.broken, programs.search, programs.double], max_tool_iterations=4))
    made = await world.trajectory(recorder, tool_failed=-0.2, tool_empty=-0.1)
    assert earned(made) == [[("tool_failed", -0.2)], [("tool_empty", -0.1)], [], []]


async def test_without_reflection_the_tool_has_the_last_word(world: World) -> None:
    async with world.rollout() as recorder:
        result = await whole(programs.assistant(reflect_on_tool_use=False))
        await world.joined(recorder, 1)
        spans = await world.spans(recorder)
    assert result.messages[-1].to_text() == "6"  # type: ignore[union-attr]
    assert tree(spans) == {"": ["solver"], "solver": ["gpt-4o-mini", "double"]}


async def test_a_loop_of_tools_goes_on_in_the_same_conversation(world: World) -> None:
    async with world.rollout() as recorder:
        await whole(programs.assistant(max_tool_iterations=4))
        await world.joined(recorder, 2)
    made = await world.trajectory(recorder)
    assert [t.continues for t in made.transitions] == [None, 0]


@pytest.mark.parametrize("run", [whole, streamed])
async def test_a_round_robin_is_a_team_of_its_agents_turns(world: World, run: Any) -> None:
    async with world.rollout() as recorder:
        await run(programs.round_robin())
        await world.joined(recorder, 4)
        spans = await world.spans(recorder)
    assert tree(spans)[""] == ["RoundRobinGroupChat"]
    assert tree(spans)["RoundRobinGroupChat"] == ["writer", "critic", "writer", "critic"]
    team = named(spans, "RoundRobinGroupChat")
    assert (team.kind, team.attributes["team"]) == ("agent", "RoundRobinGroupChat")
    assert team.attributes["stop_reason"] == "Text 'good' mentioned"
    assert await turns(world, recorder) == [("writer", 0), ("critic", 0), ("writer", 1), ("critic", 1)]


@pytest.mark.parametrize("settings", [{}, {"model_client_streaming": True}])
async def test_a_selectors_own_calls_are_its_managers(world: World, settings: Any) -> None:
    async with world.rollout() as recorder:
        await whole(programs.selector(allow_repeated_speaker=True, **settings))
        await world.joined(recorder, 8)
        spans = await world.spans(recorder)
    manager = "SelectorGroupChatManager"
    assert await turns(world, recorder) == [
        (manager, 0), ("writer", 0), (manager, 1), ("critic", 0), (manager, 2), ("writer", 1), (manager, 3), ("critic", 1),
    ]  # fmt: skip
    assert Counter(tree(spans)["SelectorGroupChat"]) == {manager: 4, "writer": 2, "critic": 2}
    made = await world.trajectory(recorder, agents=["writer", "critic"])
    assert [t.trained for t in made.transitions] == [False, True] * 4


async def test_a_selector_that_a_function_decides_for_leaves_no_span(world: World) -> None:
    def choose(messages: Any) -> str:
        return "critic" if messages[-1].source == "writer" else "writer"

    async with world.rollout() as recorder:
        await whole(programs.selector(selector_func=choose))
        await world.joined(recorder, 4)
        spans = await world.spans(recorder)
    assert tree(spans)["SelectorGroupChat"] == ["writer", "critic", "writer", "critic"]


async def test_a_handoff_moves_the_turn_to_the_new_agent(world: World) -> None:
    async with world.rollout() as recorder:
        result = await whole(programs.swarm())
        await world.joined(recorder, 3)
        spans = await world.spans(recorder)
    assert isinstance(result.messages[-1], HandoffMessage)
    assert tree(spans)["Swarm"] == ["front", "expert"]
    assert [named(spans, name).attributes["handoff"] for name in ("front", "expert")] == ["expert", "user"]
    assert named(spans, "transfer_to_expert").agent == "front"
    assert named(spans, "double").attributes["output"] == "8"
    assert await turns(world, recorder) == [("front", 0), ("expert", 0), ("expert", 1)]


async def test_branches_of_a_graph_run_side_by_side(world: World) -> None:
    async with world.rollout() as recorder:
        await whole(programs.graph())
        await world.joined(recorder, 4)
        spans = await world.spans(recorder)
    assert tree(spans)[""] == ["GraphFlow"]
    order = [agent for agent, _ in await turns(world, recorder)]
    assert (order[0], set(order[1:3]), order[3]) == ("outline", {"left", "right"}, "join")
    left, right = named(spans, "left"), named(spans, "right")
    assert left.ended is not None
    assert right.ended is not None
    assert left.started < right.ended
    assert right.started < left.ended


async def test_a_nested_team_and_a_society_hang_from_what_they_are_in(world: World) -> None:
    async with world.rollout() as recorder:
        await whole(programs.nested())
        llm = await world.joined(recorder, 5)
        spans = await world.spans(recorder)
    assert tree(spans)[""] == ["house"]
    assert tree(spans)["house"] == ["studio", "society"]
    assert tree(spans)["studio"] == ["writer", "critic"]
    assert tree(spans)["society"] == ["RoundRobinGroupChat", "gpt-4o-mini"]
    assert tree(spans)["RoundRobinGroupChat"] == ["optimist", "pessimist"]
    assert [span.agent for span in llm] == ["writer", "critic", "optimist", "pessimist", "society"]


async def test_agents_and_teams_that_are_tools_hang_from_the_tool(world: World) -> None:
    async with world.rollout() as recorder:
        result = await whole(programs.agents_in_tools())
        llm = await world.joined(recorder, 7)
        spans = await world.spans(recorder)
    assert result.messages[-1].to_text() == "done"  # type: ignore[union-attr]
    assert Counter(span.agent for span in llm) == {"boss": 3, "helper": 2, "one": 1, "two": 1}
    (asked,) = [span for span in spans if (span.kind, span.name) == ("tool", "helper")]
    assert asked.agent == "boss"
    assert asked.attributes["output"] == "helper: fifteen"
    (helper,) = [span for span in spans if (span.kind, span.name) == ("agent", "helper")]
    assert helper.parent_id == asked.id
    (tool,) = [span for span in spans if (span.kind, span.name) == ("tool", "pair")]
    (team,) = [span for span in spans if (span.kind, span.name) == ("agent", "pair")]
    assert team.parent_id == tool.id


async def test_one_module_level_model_serves_many_rollouts_at_once(world: World) -> None:
    makers = [programs.assistant, programs.round_robin, programs.selector, programs.swarm, programs.graph, programs.nested]

    async def rollout(number: int) -> tuple[Any, list[Any]]:
        async with world.rollout(number) as recorder:
            await asyncio.gather(whole(makers[number % 6]()), streamed(programs.assistant(max_tool_iterations=2)))
        made = await world.trajectory(recorder)
        assert not [said for said in made.diagnostics if "not scored" not in said]
        assert made.task.input == number
        return number, [t.agent for t in made.transitions]

    done = await asyncio.gather(*(rollout(number) for number in range(12)))
    assert Counter(dict(done)[2])["SelectorGroupChatManager"] > 0
    for number in range(6):
        assert Counter(dict(done)[number]) == Counter(dict(done)[number + 6])
        assert Counter(dict(done)[number])["solver"] >= 2
        assert None not in dict(done)[number]
