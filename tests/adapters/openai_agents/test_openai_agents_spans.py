"""What becomes a span, what it is called, and what it hangs from."""

from __future__ import annotations

import asyncio
from typing import Any

import agents
import pytest
from adapter_world import World, earned, named, problems, tree
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrail,
    OutputGuardrail,
    RunContextWrapper,
    Runner,
    custom_span,
    function_tool,
    trace,
)
from agents_world import Prompt
from openai import AsyncOpenAI
from pydantic import BaseModel

import agentlightning as agl
from agentlightning_openai_agents import LightningTracingProcessor, current_span_id

pytestmark = pytest.mark.usefixtures("installed", "api")


@function_tool
def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


@function_tool
def broken(x: int) -> int:
    """Always fails."""
    raise ValueError(f"no {x} here")


class Answer(BaseModel):
    x: int


async def streamed(agent: Any, given: Any) -> Any:
    result = Runner.run_streamed(agent, given)
    async for _ in result.stream_events():
        pass
    return result


async def blocking(agent: Any, given: Any) -> Any:
    return await asyncio.to_thread(Runner.run_sync, agent, given)


async def test_code_that_is_taken_out_of_the_rollout_leaves_no_spans(world: World) -> None:
    async with world.rollout() as recorder:
        with trace("work"), custom_span("mine"), agl.attach(None), custom_span("a judge's"):
            pass
        spans = (await world.records(recorder)).spans
    assert [span.name for span in spans] == ["mine"]


@pytest.mark.parametrize("run", [Runner.run, streamed, blocking])
async def test_an_agent_is_a_tree_of_its_tools_and_model_calls(world: World, run: Any) -> None:
    async with world.rollout() as recorder:
        agent = Agent(name="writer", instructions="Write.", tools=[double], model_settings=agents.ModelSettings(temperature=0.5))
        assert (await run(agent, "what is 1 + 2?")).final_output == "the answer of: 6"
        llm = await world.joined(recorder, 2)
        spans = (await world.records(recorder)).spans
    model = llm[0].name
    assert tree(spans) == {"": ["writer"], "writer": [model, "double", model]}
    assert {span.agent for span in spans} == {"writer"}
    assert [span.attributes["turn"] for span in llm] == [1, 2]
    assert llm[0].attributes["sampling"]["temperature"] == 0.5
    assert llm[0].attributes["tools"] == ["double"]
    assert llm[0].attributes["usage"]["requests"] == 1
    assert not [span for span in llm if "output" in span.attributes or "unjoined" in span.attributes]
    used = named(spans, "double")
    assert (used.kind, used.attributes["input"], used.attributes["output"]) == ("tool", {"x": 3}, 6)
    assert used.attributes["tool_call_id"].startswith("call_")
    assert named(spans, "writer").attributes == {"workflow": "Agent workflow", "tools": ["double"], "output_type": "str"}
    assert all(span.ended is not None and span.started <= span.ended for span in spans)
    made = await world.trajectory(recorder, agents=["writer"])
    assert [(t.agent, t.turn, t.trained, t.continues) for t in made.transitions] == [("writer", 0, True, None), ("writer", 1, True, 0)]


async def test_a_tool_that_fails_is_a_span_with_its_error(world: World) -> None:
    async with world.rollout() as recorder:
        await Runner.run(Agent(name="writer", tools=[broken]), "question")
        await world.joined(recorder, 2)
        spans = (await world.records(recorder)).spans
    assert named(spans, "broken").attributes["error"].startswith("Error running tool")
    assert named(spans, "broken").attributes["output"].startswith("An error occurred while running the tool")
    assert named(spans, "broken").attributes["tool_call_id"].startswith("call_")


@function_tool
def search(x: int) -> list[str]:
    """Finds nothing."""
    return []


@function_tool
def forget(x: int) -> None:
    """Gives nothing."""


def say_so(context: Any, error: Exception) -> str:
    return "try again"


def broken_too(x: int) -> int:
    raise ValueError(f"no {x} here")


async def test_a_tool_that_fails_is_a_fact_of_the_call_that_asked_for_it(world: World) -> None:
    for tool in (broken, function_tool(broken_too, failure_error_function=say_so)):
        async with world.rollout() as recorder:
            await Runner.run(Agent(name="writer", tools=[tool]), "question")
        assert earned(await world.trajectory(recorder, tool_failed=-0.2, tool_empty=-1.0)) == [[("tool_failed", -0.2)], []]
    async with world.rollout() as recorder:
        with pytest.raises(agents.UserError):
            await Runner.run(Agent(name="writer", tools=[function_tool(broken_too, failure_error_function=None)]), "question")
    assert earned(await world.trajectory(recorder, tool_failed=-0.2, tool_empty=-1.0)) == [[("tool_failed", -0.2)]]


@pytest.mark.parametrize(("tool", "output"), [(search, []), (forget, None)])
async def test_a_tool_that_gives_nothing_is_a_fact_of_the_call_that_asked_for_it(world: World, tool: Any, output: Any) -> None:
    async with world.rollout() as recorder:
        await Runner.run(Agent(name="writer", tools=[tool]), "question")
        assert named(await world.spans(recorder), tool.name).attributes["output"] == output
    assert earned(await world.trajectory(recorder, tool_failed=-1.0, tool_empty=-0.1)) == [[("tool_empty", -0.1)], []]


async def test_a_tool_whose_output_is_kept_from_tracing_gave_something_for_all_that_is_known(world: World) -> None:
    async with world.rollout() as recorder:
        await Runner.run(Agent(name="writer", tools=[double]), "question", run_config=agents.RunConfig(trace_include_sensitive_data=False))
        assert "output" not in named(await world.spans(recorder), "double").attributes
    assert earned(await world.trajectory(recorder, tool_empty=-0.1)) == [[], []]


class TestHandoffs:
    @pytest.fixture
    def script(self) -> Any:
        def say(text: str, sampling: Any) -> str:
            prompt = Prompt(text)
            return "CALL transfer_to_french()" if "transfer_to_french" in prompt.tools else "bonsoir"

        return say

    async def test_a_handoff_moves_the_turn_to_the_new_agent(self, world: World) -> None:
        async with world.rollout() as recorder:
            french = Agent(name="french", instructions="French only.")
            triage = Agent(name="triage", instructions="Hand off.", handoffs=[french])
            result = await Runner.run(triage, "bonsoir")
            assert result.last_agent is french
            llm = await world.joined(recorder, 2)
            spans = (await world.records(recorder)).spans
        assert [(span.agent, span.attributes["turn"]) for span in llm] == [("triage", 1), ("french", 2)]
        assert tree(spans)[""] == ["triage", "french"]
        handed = named(spans, "handoff from triage to french")
        assert (handed.kind, handed.agent, handed.attributes) == ("note", "triage", {"from": "triage", "to": "french"})
        assert llm[0].attributes["tools"] == ["transfer_to_french"]
        assert named(spans, "triage").attributes["handoffs"] == ["french"]
        made = await world.trajectory(recorder)
        assert [(t.agent, t.turn) for t in made.transitions] == [("triage", 0), ("french", 0)]

    async def test_a_reward_for_a_handoff_reaches_the_call_that_decided_it(self, world: World) -> None:
        async with world.rollout() as recorder:
            french = Agent(name="french")
            await Runner.run(Agent(name="triage", handoffs=[french]), "bonsoir")
            handed = (await world.spans(recorder, "note"))[0]
            agl.reward(0.5, span=handed)
        made = await world.trajectory(recorder)
        assert [[r.value for r in t.rewards] for t in made.transitions] == [[0.5], []]


class TestAgentsAsTools:
    @pytest.fixture
    def script(self) -> Any:
        def say(text: str, sampling: Any) -> str:
            prompt = Prompt(text)
            return "CALL ask_one(a)\nCALL ask_two(b)\nCALL ask_one(c)" if prompt.tools and prompt.role == "user" else f"said {prompt.last}"

        return say

    async def test_an_agent_inside_a_tool_hangs_from_the_tool_and_has_its_own_name(self, world: World) -> None:
        async with world.rollout() as recorder:
            one, two = Agent(name="one"), Agent(name="two")
            tools = [one.as_tool("ask_one", "Asks one."), two.as_tool("ask_two", "Asks two.")]
            await Runner.run(Agent(name="boss", tools=tools), "question")
            llm = await world.joined(recorder, 5)
            records = await world.records(recorder)
        assert sorted(span.agent or "" for span in llm) == ["boss", "boss", "one", "one", "two"]
        assert tree(records.spans)["ask_one"] == ["one", "one"]
        assert tree(records.spans)["ask_two"] == ["two"]
        used = [span for span in records.spans if span.kind == "tool"]
        assert {span.agent for span in used} == {"boss"}
        reply = next(c for c in records.completions if c.message.get("tool_calls"))
        asked = {call["id"]: call["function"]["arguments"] for call in reply.message["tool_calls"]}
        assert len(asked) == 3
        assert {span.attributes["tool_call_id"]: span.attributes["input"] for span in used} == {
            id: {"input": arguments[-3]} for id, arguments in asked.items()
        }
        made = await world.trajectory(recorder, agents=["one"])
        assert sorted((t.agent, t.turn, t.trained) for t in made.transitions) == [
            ("boss", 0, False), ("boss", 1, False), ("one", 0, True), ("one", 1, True), ("two", 0, False),
        ]  # fmt: skip


class TestTwins:
    @pytest.fixture
    def script(self) -> Any:
        return lambda text, sampling: "CALL double(3)\nCALL double(3)" if Prompt(text).role == "user" else "done"

    async def test_two_equal_tool_calls_have_an_id_each(self, world: World) -> None:
        async with world.rollout() as recorder:
            await Runner.run(Agent(name="writer", tools=[double]), "question")
            await world.joined(recorder, 2)
            used = await world.spans(recorder, "tool")
        assert len({span.attributes["tool_call_id"] for span in used}) == 2


async def test_a_reward_for_a_tool_reaches_the_call_that_asked_for_it(world: World) -> None:
    @function_tool
    def scored(x: int) -> int:
        """Judges itself."""
        agl.reward(0.5, span=current_span_id())
        return x

    async with world.rollout() as recorder:
        await Runner.run(Agent(name="writer", tools=[scored]), "question")
    made = await world.trajectory(recorder)
    assert [[reward.value for reward in t.rewards] for t in made.transitions] == [[0.5], []]
    assert current_span_id() is None


class TestGuardrails:
    @pytest.fixture
    def script(self) -> Any:
        return lambda text, sampling: '{"x": 3}' if "JSON schema" in text else "fine"

    async def test_a_guardrail_is_a_tool_that_nobody_asked_for_and_its_agent_hangs_from_it(self, world: World) -> None:
        checker = Agent(name="checker", output_type=Answer)

        async def allowed(context: RunContextWrapper[Any], agent: Any, given: Any) -> GuardrailFunctionOutput:
            answer = (await Runner.run(checker, given)).final_output
            return GuardrailFunctionOutput(output_info=answer, tripwire_triggered=answer.x != 3)

        async with world.rollout() as recorder:
            agent = Agent(
                name="writer",
                input_guardrails=[InputGuardrail(allowed, name="before")],
                output_guardrails=[OutputGuardrail(allowed, name="after")],
            )
            await Runner.run(agent, "question")
            llm = await world.joined(recorder, 3)
            spans = (await world.records(recorder)).spans
        assert sorted(span.agent or "" for span in llm) == ["checker", "checker", "writer"]
        for name in ("before", "after"):
            guard = named(spans, name)
            assert (guard.kind, guard.attributes) == ("tool", {"guardrail": True, "triggered": False})
            assert tree(spans)[name] == ["checker"]


async def test_runs_side_by_side_are_told_apart(world: World) -> None:
    async with world.rollout() as recorder:
        one, two = Agent(name="one", tools=[double]), Agent(name="two", tools=[double])
        with trace("together"):
            await asyncio.gather(*(Runner.run(agent, f"question {i}") for i in range(3) for agent in (one, two)))
        llm = await world.joined(recorder, 12)
        spans = (await world.records(recorder)).spans
    assert sorted(span.agent or "" for span in llm) == ["one"] * 6 + ["two"] * 6
    assert {span.attributes.get("workflow") for span in spans if span.parent_id is None} == {"together"}
    assert len([span for span in spans if span.attributes.get("tool_call_id")]) == 6
    made = await world.trajectory(recorder)
    assert sorted((t.agent, t.turn) for t in made.transitions) == sorted((name, turn) for name in ("one", "two") for turn in range(6))


async def test_runs_without_turns_in_their_traces_are_recorded_all_the_same(world: World) -> None:
    async with world.rollout() as recorder:
        bare = agents.RunConfig(tracing={"include_task_and_turn_spans": False})
        await Runner.run(Agent(name="writer", tools=[double]), "question", run_config=bare)
        llm = await world.joined(recorder, 2)
        used = (await world.spans(recorder, "tool"))[0]
    assert [span.agent for span in llm] == ["writer", "writer"]
    assert used.attributes["tool_call_id"].startswith("call_")


async def test_a_span_of_the_program_s_own_is_a_note_with_its_data(world: World) -> None:
    async with world.rollout() as recorder:
        with trace("mine"), custom_span("look up", {"key": 1}):
            await Runner.run(Agent(name="writer"), "question")
        spans = (await world.records(recorder)).spans
    mine = named(spans, "look up")
    assert (mine.kind, mine.attributes) == ("note", {"workflow": "mine", "data": {"key": 1}})
    assert tree(spans)["look up"] == ["writer"]
    assert problems(spans) == []


async def test_a_processor_wired_by_hand_beside_the_installed_one_records_once(world: World) -> None:
    agents.add_trace_processor(LightningTracingProcessor())
    async with world.rollout() as recorder:
        await Runner.run(Agent(name="writer", tools=[double]), "question")
        await world.joined(recorder, 2)
        spans = (await world.records(recorder)).spans
    assert len({span.id for span in spans}) == len(spans) == 4


async def test_outside_a_rollout_nothing_is_recorded(world: World) -> None:
    async with world.rollout() as recorder:
        pass
    model = agents.OpenAIChatCompletionsModel("m", AsyncOpenAI(base_url="http://127.0.0.1:9", api_key="k", max_retries=0))
    with pytest.raises(Exception, match="Connection error"):
        await Runner.run(Agent(name="writer", model=model), "question")
    assert (await world.store.records(recorder.attempt.id)).spans == ()
