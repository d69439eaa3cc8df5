"""Programs as AutoGen's users write them. Nothing here knows of Agent Lightning, and the model was built before any gateway."""

# No `from __future__ import annotations`: AutoGen reads the annotations of message handlers.

import json
from dataclasses import dataclass
from typing import Any

from autogen_agentchat.agents import AssistantAgent, SocietyOfMindAgent
from autogen_agentchat.conditions import HandoffTermination, MaxMessageTermination, TextMentionTermination
from autogen_agentchat.teams import DiGraphBuilder, GraphFlow, RoundRobinGroupChat, SelectorGroupChat, Swarm
from autogen_agentchat.tools import AgentTool, TeamTool
from autogen_core import AgentId, DefaultTopicId, MessageContext, RoutedAgent, SingleThreadedAgentRuntime, TypeSubscription, message_handler
from autogen_core.models import AssistantMessage, FunctionExecutionResult, FunctionExecutionResultMessage, SystemMessage, UserMessage
from autogen_core.tool_agent import ToolAgent, tool_agent_caller_loop
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


@dataclass
class Order:
    text: str


@dataclass
class Draft:
    text: str


class Coder(RoutedAgent):
    """Calls the model and its tools by hand, then publishes a draft."""

    def __init__(self) -> None:
        super().__init__("Codes.")
        self.tools = [FunctionTool(double, "Doubles.")]

    @message_handler
    async def code(self, message: Order, ctx: MessageContext) -> None:
        conversation: list[Any] = [
            SystemMessage(content="plan: CALL double(3) | it is 6"),
            UserMessage(content=message.text, source="user"),
        ]
        result = await MODEL.create(conversation, tools=self.tools)
        assert isinstance(result.content, list)
        conversation.append(AssistantMessage(content=result.content, source="coder"))
        outputs = []
        for call in result.content:
            value = await self.tools[0].run_json(json.loads(call.arguments), ctx.cancellation_token)
            outputs.append(FunctionExecutionResult(content=str(value), call_id=call.id, name=call.name, is_error=False))
        conversation.append(FunctionExecutionResultMessage(content=outputs))
        result = await MODEL.create(conversation, tools=self.tools)
        await self.publish_message(Draft(str(result.content)), DefaultTopicId(source=ctx.topic_id.source if ctx.topic_id else "default"))


class Reviewer(RoutedAgent):
    @message_handler
    async def review(self, message: Draft, ctx: MessageContext) -> None:
        await MODEL.create([SystemMessage(content="plan: good"), UserMessage(content=message.text, source="coder")])


class Boss(RoutedAgent):
    """Lets a `ToolAgent` run its tools, asks a clerk, and waits for both."""

    @message_handler
    async def work(self, message: Order, ctx: MessageContext) -> Order:
        await tool_agent_caller_loop(
            self,
            AgentId("tools", self.id.key),
            MODEL,
            [SystemMessage(content="plan: CALL double(3) | it is 6"), UserMessage(content=message.text, source="user")],
            [FunctionTool(double, "Doubles.")],
        )
        return await self.send_message(Draft("a draft"), AgentId("clerk", self.id.key))


class Clerk(RoutedAgent):
    @message_handler
    async def file(self, message: Draft, ctx: MessageContext) -> Order:
        await MODEL.create([SystemMessage(content="plan: filed"), UserMessage(content=message.text, source="boss")])
        return Order("done")


class Forwarder(RoutedAgent):
    """Calls no model and no tool."""

    @message_handler
    async def forward(self, message: Order, ctx: MessageContext) -> Order:
        return await self.send_message(message, AgentId("boss", self.id.key))


class Listener(RoutedAgent):
    @message_handler
    async def hear(self, message: Draft, ctx: MessageContext) -> None:
        """Does nothing that is recorded."""


async def core_runtime() -> SingleThreadedAgentRuntime:
    runtime = SingleThreadedAgentRuntime()
    await Coder.register(runtime, "coder", Coder)
    await Reviewer.register(runtime, "reviewer", lambda: Reviewer("Reviews."))
    await Listener.register(runtime, "listener", lambda: Listener("Listens."))
    for agent_type in ("coder", "reviewer", "listener"):
        await runtime.add_subscription(TypeSubscription("default", agent_type))
    await Boss.register(runtime, "boss", lambda: Boss("Gives orders."))
    await Clerk.register(runtime, "clerk", lambda: Clerk("Files."))
    await Forwarder.register(runtime, "forwarder", lambda: Forwarder("Forwards."))
    await ToolAgent.register(runtime, "tools", lambda: ToolAgent("Runs tools.", [FunctionTool(double, "Doubles.")]))
    return runtime
