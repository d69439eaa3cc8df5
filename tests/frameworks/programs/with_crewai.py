"""CrewAI: a crew of two agents with a tool each, and a task for each agent."""

from __future__ import annotations

from crewai import LLM as Model
from crewai import Agent, Crew, Task
from crewai.tools import tool

from agentlightning.types import LLM


@tool
def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


@tool
def triple(x: int) -> int:
    """Triples a number."""
    return 3 * x


async def run(llm: LLM, question: str, *, stream: bool) -> str:
    model = Model(model=f"openai/{llm.model}", base_url=llm.base_url, api_key=llm.api_key, stream=stream)
    writer = Agent(role="writer", goal="Answer.", backstory="You write.", llm=model, tools=[double])
    critic = Agent(role="critic", goal="Check.", backstory="You check.", llm=model, tools=[triple])
    tasks = [Task(description=question, expected_output="a number", agent=agent) for agent in (writer, critic)]
    return str(await Crew(agents=[writer, critic], tasks=tasks).kickoff_async())
