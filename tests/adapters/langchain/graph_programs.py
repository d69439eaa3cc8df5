"""Graphs as LangGraph's users build them. Nothing here knows of Agent Lightning, and the model was built before any gateway.

`plan: first | second` in a prompt says what the model replies: the first call that it has not made yet, else the last text.
"""

# No `from __future__ import annotations`: LangGraph reads the annotations of nodes that are made inside a function.

import operator
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent, tools_condition
from langgraph.types import Send

MODEL: Any = ChatOpenAI(model="gpt-4o-mini", base_url="http://127.0.0.1:9/v1", api_key="secret", max_retries=0)  # type: ignore[arg-type]
QUESTION: Any = {"messages": [("user", "a question")]}
USES_TOOL = "plan: CALL double(3) | it is 6"


@tool
def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


@tool
def triple(x: int) -> int:
    """Triples a number."""
    return 3 * x


def asks(plan: str) -> Callable[[MessagesState], Any]:
    """A node that calls the model once."""

    async def node(state: MessagesState) -> Any:
        return {"messages": [await MODEL.ainvoke([("system", f"plan: {plan}"), ("user", "go on")])]}

    return node


def agent(name: str | None = None, prompt: str = USES_TOOL, tools: Any = (double,)) -> Any:
    return create_agent(MODEL, list(tools), system_prompt=prompt, name=name)


def react_agent(name: str | None = None, prompt: str = USES_TOOL, tools: Any = (double,), **settings: Any) -> Any:
    return create_react_agent(MODEL, list(tools), prompt=prompt, name=name, **settings)


def react_agent_with_hooks() -> Any:
    def nothing(state: Any) -> Any:
        return {}

    schema = {"title": "answer", "description": "An answer.", "type": "object", "properties": {"x": {"type": "integer"}}}
    return react_agent("writer", pre_model_hook=nothing, post_model_hook=nothing, response_format=schema)


def sequence(*nodes: tuple[str, Any], name: str | None = None) -> Any:
    """A graph of nodes, one after the other."""
    graph = StateGraph(MessagesState)
    for node, body in nodes:
        graph.add_node(node, body)
    for before, (node, _) in zip([START, *(node for node, _ in nodes)], nodes, strict=False):
        graph.add_edge(before, node)
    return graph.compile(name=name)


def workflow() -> Any:
    return sequence(("plan", asks("a plan")), ("write", asks("a text")), name="essay")


def hand_written_loop(name: str | None) -> Any:
    """A node that calls the model, and a `ToolNode`."""
    model = MODEL.bind_tools([double])

    def ask(state: MessagesState) -> Any:
        return {"messages": [model.invoke([("system", USES_TOOL), *state["messages"]])]}

    graph = StateGraph(MessagesState).add_node("ask", ask).add_node("tools", ToolNode([double])).add_edge(START, "ask")
    return graph.add_conditional_edges("ask", tools_condition).add_edge("tools", "ask").compile(name=name)


def own_tool_loop() -> Any:
    """A workflow with a tool node: the tools belong to the node that asked for them."""
    model = MODEL.bind_tools([double])

    def ask(state: MessagesState) -> Any:
        return {"messages": [model.invoke([("system", USES_TOOL), *state["messages"]])]}

    return sequence(("outline", asks("an outline")), ("ask", ask), ("tools", ToolNode([double])), name="two")


def nested() -> Any:
    """A graph in a graph in a graph; agents as nodes, and an agent that a node calls."""
    caller = react_agent()

    async def delegate(state: MessagesState) -> Any:
        return {"messages": [(await caller.ainvoke(QUESTION))["messages"][-1]]}

    studio = sequence(("draft", asks("a draft")), ("polish", asks("a text")))
    team = sequence(("write", studio), ("check", react_agent()), ("alone", sequence(("inner", asks("alone")))))
    return sequence(("team", team), ("last", react_agent("editor")), ("loop", hand_written_loop(None)), ("delegate", delegate))


class Topics(TypedDict):
    texts: Annotated[list[str], operator.add]


def fan_out() -> Any:
    async def worker(topic: str) -> Any:
        return {"texts": [(await MODEL.ainvoke(f"plan: about {topic}")).text]}

    def topics(state: Topics) -> list[Send]:
        return [Send("worker", topic) for topic in ("cats", "dogs", "eels")]

    async def join(state: Topics) -> Any:
        return {"texts": [(await MODEL.ainvoke("plan: all of it")).text]}

    graph = StateGraph(Topics).add_node("worker", worker).add_node("join", join)
    return graph.add_conditional_edges(START, topics, ["worker"]).add_edge("worker", "join").compile()


def functional() -> Any:
    helper = react_agent("helper")

    @task
    async def outline(topic: str) -> str:
        return (await MODEL.ainvoke(f"plan: outline of {topic}")).text

    @entrypoint()
    async def essay(topic: str) -> str:
        first = await outline(topic)
        await helper.ainvoke(QUESTION)
        return (await MODEL.ainvoke(f"plan: essay of {first}")).text

    return essay


def chain() -> Any:
    return ChatPromptTemplate.from_template("plan: about {topic}") | MODEL | StrOutputParser()


def agents_in_tools() -> Any:
    helper, nameless, studio = agent("helper"), react_agent(), sequence(("draft", asks("a draft")), ("polish", asks("a text")))

    @tool
    async def ask_helper() -> str:
        """Asks the helper."""
        return (await helper.ainvoke(QUESTION))["messages"][-1].text

    @tool
    async def ask_nameless() -> str:
        """Asks the one without a name."""
        return (await nameless.ainvoke(QUESTION))["messages"][-1].text

    @tool
    async def ask_studio() -> str:
        """Asks the studio."""
        return (await studio.ainvoke(QUESTION))["messages"][-1].text

    @tool
    async def ask_model() -> str:
        """Asks the model itself."""
        return (await MODEL.ainvoke("plan: hello")).text

    plan = "plan: CALL ask_helper() | CALL ask_nameless() | CALL ask_studio() | CALL ask_model() | done"
    return agent("boss", plan, [ask_helper, ask_nameless, ask_studio, ask_model])


def supervisor() -> Any:
    from langgraph_supervisor import create_supervisor

    experts: Any = [react_agent("math_expert"), react_agent("research_expert", "plan: CALL triple(3) | it is 9", [triple])]
    plan = "plan: CALL transfer_to_math_expert() | CALL transfer_to_research_expert() | done"
    return create_supervisor(experts, model=MODEL, prompt=plan).compile()


def swarm() -> Any:
    from langgraph_swarm import create_handoff_tool, create_swarm

    to_bob: Any = create_handoff_tool(agent_name="Bob")
    alice = react_agent("Alice", "plan: CALL double(3) | CALL transfer_to_bob() | never", [double, to_bob])
    bob = agent("Bob", "plan: CALL triple(3) | it is 9", [triple])
    return create_swarm([alice, bob], default_active_agent="Alice").compile()


def deep_agent() -> Any:
    from deepagents import create_deep_agent

    helper: Any = {"name": "helper", "description": "helps", "system_prompt": USES_TOOL, "tools": [double], "model": MODEL}
    plan = 'plan: CALL task({"description": "help", "subagent_type": "helper"}) | done'
    return create_deep_agent(MODEL, tools=[], system_prompt=plan, subagents=[helper])
