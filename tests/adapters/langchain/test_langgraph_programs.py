"""LangGraph programs that know nothing of us, run as they are after `install()`: each request is a transition of the right agent."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapter_world import World

import agentlightning_langchain
from agentlightning.contracts.store import AttemptRecords
from agentlightning.types import Sampling, Span, Trajectory

PROGRAMS = Path(__file__).parent / "programs"


def says(prompt: str, sampling: Sampling) -> str:
    """The model of all programs, by the last thing that it is told."""
    last = prompt.rsplit("<|im_start|>", 2)[-2]
    if "Reply with the next worker" in prompt:
        return "done" if "The writer wrote" in last else "write" if "The researcher found" in last else "research"
    for tool, call in {"multiply": 'multiply({"a": 6, "b": 7})', "look_up": "look_up(the sky)", "today": "today()"}.items():
        if f"{tool}(" in prompt and f"CALL {tool}" not in prompt:
            return f"CALL {call}"
    if "square_root(" in prompt:
        return {0: "CALL square_root(-9)", 1: "CALL square_root(9)"}.get(prompt.count("CALL square_root("), "the root is 3.0")
    return f"I say: {last.removeprefix('user').removesuffix('<|im_end|>').strip().splitlines()[-1]}"


@pytest.fixture
def script() -> Any:
    return says


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Loads a program as it stands, in a process whose OpenAI key is worth nothing."""
    monkeypatch.setenv("OPENAI_API_KEY", "worth nothing")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_BASE", raising=False)

    def load(name: str) -> Any:
        agentlightning_langchain.install(models=["gpt-4o-mini"])
        spec = importlib.util.spec_from_file_location(f"langgraph_program_{name}", PROGRAMS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # LangGraph reads the annotations of nodes there
        spec.loader.exec_module(module)
        return module

    return load


class Told:
    """What one rollout of a program left."""

    def __init__(self, answer: str, made: Trajectory, records: AttemptRecords) -> None:
        self.answer, self.made, self.records = answer, made, records
        self.spans = {span.id: span for span in records.spans}

    @property
    def turns(self) -> list[tuple[str | None, int]]:
        """Agent and turn of each transition, in order."""
        return [(each.agent, each.turn) for each in self.made.transitions]

    def kind(self, kind: str) -> list[Span]:
        return sorted((span for span in self.records.spans if span.kind == kind), key=lambda span: span.started)

    def above(self, span: Span) -> list[str]:
        """Names of the spans around one, from the inside."""
        names: list[str] = []
        parent = span.parent_id
        while parent is not None:
            names.append(self.spans[parent].name)
            parent = self.spans[parent].parent_id
        return names

    def llm_above(self) -> list[list[str]]:
        """What is around each model call, in the order of arrival."""
        by_call = {span.call_id: span for span in self.kind("llm")}
        return [self.above(by_call[call.id]) for call in sorted(self.records.calls, key=lambda call: call.index)]


async def tell(world: World, module: Any, question: str = "what is it?", number: int = 0) -> Told:
    """Run a program in a rollout, and check what holds for every program: each request is joined, and is one trained transition."""
    async with world.rollout(number) as recorder:
        answer = await module.main(question)
        await world.joined(recorder, len((await world.records(recorder)).calls))
    made = await world.trajectory(recorder)
    records = await world.store.records(recorder.attempt.id)
    assert made.calls == {"completed": len(records.calls)}
    assert len(made.transitions) == len(records.calls) == len(records.completions)
    assert all(each.trained and each.agent for each in made.transitions), made.diagnostics
    by_id = {each.id: each for each in records.completions}
    for each in made.transitions:
        assert each.response_ids.tolist() == by_id[each.completion_id].response_ids.tolist()
        assert each.prompt_ids.tolist() == by_id[each.completion_id].prompt_ids.tolist()
    return Told(answer, made, records)


@pytest.mark.parametrize("file", sorted(PROGRAMS.glob("*.py")), ids=lambda file: file.stem)
def test_a_program_imports_nothing_of_ours(file: Path) -> None:
    names = [node.module or "" for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    names += [each.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Import) for each in node.names]
    assert names
    assert not [name for name in names if name.startswith("agentlightning")]


async def test_the_prebuilt_agent(world: World, program: Any) -> None:
    told = await tell(world, program("prebuilt_agent"))
    assert told.answer == "I say: 42"
    assert told.turns == [("solver", 0), ("solver", 1)]
    assert told.made.transitions[1].continues == 0, "the second turn is the first one's conversation"
    [tool] = told.kind("tool")
    assert (tool.name, tool.agent, tool.attributes["output"]) == ("multiply", "solver", "42")
    assert told.above(tool)[-1] == "solver"
    assert [each[-1] for each in told.llm_above()] == ["solver", "solver"]


async def test_a_supervisor_and_the_agents_that_it_sends_work_to(world: World, program: Any) -> None:
    told = await tell(world, program("supervisor"), "what colour is the sky?")
    assert told.answer == "The writer wrote: I say: The researcher found: I say: the sky: it is blue"
    assert told.turns == [
        ("supervise", 0),
        ("researcher", 0),
        ("researcher", 1),
        ("supervise", 1),
        ("writer", 0),
        ("supervise", 2),
    ]
    [tool] = told.kind("tool")
    assert (tool.name, tool.agent) == ("look_up", "researcher")
    inside = told.llm_above()
    assert "researcher" in inside[1]
    assert "research" in inside[1]
    assert "writer" in inside[4]
    assert "researcher" not in inside[4]


async def test_a_graph_inside_a_graph(world: World, program: Any) -> None:
    told = await tell(world, program("subgraph"), "a poem")
    assert told.answer == "I say: polish: I say: draft: I say: plan: a poem"
    assert told.turns == [("plan", 0), ("team/draft", 0), ("team/polish", 0)]
    plan, draft, polish = told.llm_above()
    assert "team" not in plan
    assert draft[:1] == ["draft"]
    assert polish[:1] == ["polish"]
    assert "team" in draft
    assert "team" in polish


async def test_nodes_in_parallel(world: World, program: Any) -> None:
    told = await tell(world, program("parallel_nodes"), "rain?")
    assert sorted(told.turns[:-1]) == [("critic", 0), ("critic", 1), ("critic", 2), ("optimist", 0), ("pessimist", 0)]
    assert told.turns[-1] == ("judge", 0)
    assert told.answer.startswith("I say: judge: I say: doubt: rain? (0) | I say: doubt: rain? (1)")
    assert sorted(each[0] for each in told.llm_above()) == ["critic", "critic", "critic", "judge", "optimist", "pessimist"]
    assert len({span.parent_id for span in told.kind("llm")}) == 6, "each of the three critics is a span of its own"


async def test_a_streamed_answer(world: World, program: Any) -> None:
    told = await tell(world, program("streaming"), "what day is it?")
    assert told.answer == "I say: Tuesday, the fourth day after a rather long Friday"
    assert told.turns == [("guide", 0), ("guide", 1)]
    assert [(tool.name, tool.agent) for tool in told.kind("tool")] == [("today", "guide")]
    assert all(span.attributes["sampling"]["stream"] for span in told.kind("llm"))


async def test_a_tool_that_fails_at_first(world: World, program: Any) -> None:
    told = await tell(world, program("tool_errors"), "the root of nine?")
    assert told.answer == "the root is 3.0"
    assert told.turns == [("ask", 0), ("ask", 1), ("ask", 2)]
    wrong, right = told.kind("tool")
    assert "-9 has no square root" in wrong.attributes["error"]
    assert right.attributes["output"] == "3.0"
    asked = [each.message["tool_calls"][0]["id"] for each in told.records.completions[:2]]
    assert [wrong.attributes["tool_call_id"], right.attributes["tool_call_id"]] == asked


@pytest.mark.parametrize("delay", [0.005])
@pytest.mark.parametrize("name", ["prebuilt_agent", "supervisor", "parallel_nodes"])
async def test_one_program_in_many_rollouts_at_once_mixes_nothing(world: World, program: Any, name: str) -> None:
    module = program(name)
    alone = await tell(world, module, "question 0", 0)
    many = await asyncio.gather(*(tell(world, module, f"question {n}", n) for n in range(1, 7)))
    for n, told in enumerate(many, 1):
        assert sorted(map(str, told.turns)) == sorted(map(str, alone.turns))
        assert told.answer == alone.answer.replace("question 0", f"question {n}")
        prompts = [str(each.message) for each in told.records.completions]
        assert not any(f"question {other}" in text for text in prompts for other in range(7) if other != n)
