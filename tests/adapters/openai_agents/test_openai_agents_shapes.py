"""The whole tree of each kind of program: agents, tools, handoffs, and calls, alone and with eight rollouts at once."""

from __future__ import annotations

import re
from typing import Any

import agent_programs as programs
import pytest
from adapter_world import World
from agents import Runner
from shape import check_shape

import agentlightning_openai_agents
from agentlightning.types import Sampling

pytestmark = pytest.mark.usefixtures("api")


def planned(prompt: str, sampling: Sampling) -> str:
    """The first call of the plan that the conversation has not made yet, else its last text."""
    *calls, last = re.findall(r"plan: (.*?)(?:<\|im_end\|>|\n|$)", prompt)[0].split(" | ")
    history = prompt.partition("<|im_end|>")[2]
    steps = [*calls, last] if last.startswith("CALL") else calls
    return next((call for call in steps if call.partition("(")[0] not in history), last)


@pytest.fixture
def script() -> Any:
    return planned


@pytest.fixture
def delay() -> float:
    return 0.001


@pytest.fixture(autouse=True)
def installed(clean: None) -> None:
    agentlightning_openai_agents.install(models=["gpt-4o-mini"])


PROGRAMS: dict[str, tuple[Any, str, list[str]]] = {
    "an agent": (
        programs.single,
        """
        solver
          call @solver
          tool(double) @solver
          call @solver
        """,
        ["solver", "solver"],
    ),
    "handoffs": (
        programs.handoffs,
        """
        triage
          call @triage
          note: handoff from triage to expert
        expert
          call @expert
          tool(triple) @expert
          call @expert
          note: handoff from expert to writer
        writer
          call @writer
        """,
        ["triage", "expert", "expert", "writer"],
    ),
    "agents as tools": (
        programs.agents_as_tools,
        """
        boss
          call @boss
          tool(ask_helper) @boss
            helper
              call @helper
              tool(triple) @helper
              call @helper
          call @boss
          tool(translate) @boss
            spanish
              call @spanish
              note: handoff from spanish to french
            french
              call @french
          call @boss
        """,
        ["boss", "boss", "boss", "helper", "helper", "spanish", "french"],
    ),
    "a guardrail that asks an agent": (
        programs.guarded,
        """
        solver
          tool(check) @solver
            checker
              call @checker
          call @solver
          tool(double) @solver
          call @solver
        """,
        ["checker", "solver", "solver"],
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_program_has_this_tree_alone_and_with_others(world: World, name: str) -> None:
    make, expected, agents = PROGRAMS[name]
    program = make()
    await check_shape(world, lambda: Runner.run(program, "question"), expected, agents)
