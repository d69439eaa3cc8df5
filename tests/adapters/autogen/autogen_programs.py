"""Programs as AutoGen's users write them. Nothing here knows of Agent Lightning, and the model was built before any gateway."""

from __future__ import annotations

from typing import Any

from autogen_agentchat.agents import AssistantAgent, SocietyOfMindAgent
from autogen_agentchat.conditions import HandoffTermination, MaxMessageTermination, TextMentionTermination
from autogen_agentchat.teams import DiGraphBuilder, GraphFlow, RoundRobinGroupChat, SelectorGroupChat, Swarm
from autogen_agentchat.tools import AgentTool, TeamTool
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient

MODEL = OpenAIChatCompletionClient(model="gpt-4o-mini", base_url="http://127.0.0.1:9/v1", api_key="secret", max_retries=0)


def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


async def triple(x: int) -> int:
    """Triples a number."""
    return 3 * x


def broken(x: int) -> int:
    """Always fails."""
    raise ValueError(f"no {x} here")


def search(x: int) -> list[str]:
    """Finds nothing."""
    return []


def agent(name: str, plan: str, **settings: Any) -> AssistantAgent:
    return AssistantAgent(name, MODEL, system_message=f"plan: {plan}", **settings)


def assistant(**settings: Any) -> AssistantAgent:
    return agent("solver", "CALL double(3) | it is 6", tools=[double, FunctionTool(triple, "Triples.")], **settings)


def round_robin() -> RoundRobinGroupChat:
    members: list[Any] = [agent("writer", "a draft | a better draft"), agent("critic", "poor | good", tools=[double])]
    return RoundRobinGroupChat(members, termination_condition=TextMentionTermination("good", sources=["critic"]))


def selector(**settings: Any) -> SelectorGroupChat:
    members: list[Any] = [agent("writer", "a draft | a better draft"), agent("critic", "poor | APPROVED")]
    return SelectorGroupChat(members, MODEL, termination_condition=TextMentionTermination("APPROVED"), **settings)


def swarm() -> Swarm:
    members: list[Any] = [
        agent("front", "CALL transfer_to_expert()", handoffs=["expert"]),
        agent("expert", "CALL double(4) | CALL transfer_to_user()", tools=[double], handoffs=["user"], max_tool_iterations=2),
    ]
    return Swarm(members, termination_condition=HandoffTermination("user") | MaxMessageTermination(12))


def graph() -> GraphFlow:
    """One outlines, two write side by side, one joins."""
    first, left, right, last = (
        agent("outline", "outline"),
        agent("left", "left part"),
        agent("right", "right part"),
        agent("join", "joined"),
    )
    builder = DiGraphBuilder()
    for each in (first, left, right, last):
        builder.add_node(each)
    builder.add_edge(first, left).add_edge(first, right).add_edge(left, last).add_edge(right, last)
    return GraphFlow(builder.get_participants(), builder.build(), termination_condition=MaxMessageTermination(8))


def nested() -> RoundRobinGroupChat:
    """A team in a team, and a society of mind behind it."""
    inner = RoundRobinGroupChat([agent("writer", "a draft"), agent("critic", "poor")], max_turns=2, name="studio")
    thinkers = RoundRobinGroupChat([agent("optimist", "yes"), agent("pessimist", "no")], max_turns=2)
    society = SocietyOfMindAgent("society", thinkers, MODEL)
    return RoundRobinGroupChat([inner, society], max_turns=2, name="house")


def agents_in_tools() -> AssistantAgent:
    helper = agent("helper", "CALL triple(5) | fifteen", tools=[triple], reflect_on_tool_use=True)
    pair = RoundRobinGroupChat([agent("one", "first"), agent("two", "second")], max_turns=2, name="pair")
    tools: list[Any] = [AgentTool(helper), TeamTool(pair, "pair", "Two opinions.")]
    plan = 'CALL helper({"task": "five times three"}) | CALL pair({"task": "opinions"}) | done'
    return agent("boss", plan, tools=tools, max_tool_iterations=3)
