"""A supervisor that sends the work to one of two agents until it is done."""

from typing import Literal

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

model = ChatOpenAI(model="gpt-4o-mini")


@tool
def look_up(topic: str) -> str:
    """What the library knows of a topic."""
    return f"{topic}: it is blue"


researcher = create_agent(model, tools=[look_up], system_prompt="You find facts.", name="researcher")
writer = create_agent(model, tools=[], system_prompt="You write one sentence.", name="writer")


async def supervise(state: MessagesState) -> Command[Literal["research", "write", "__end__"]]:
    choice = await model.ainvoke([("system", "Reply with the next worker: research, write or done."), *state["messages"]])
    return Command(goto={"research": "research", "write": "write"}.get(choice.content.strip(), "__end__"))


async def research(state: MessagesState) -> Command[Literal["supervise"]]:
    result = await researcher.ainvoke({"messages": state["messages"]})
    return Command(goto="supervise", update={"messages": [("user", f"The researcher found: {result['messages'][-1].content}")]})


async def write(state: MessagesState) -> Command[Literal["supervise"]]:
    result = await writer.ainvoke({"messages": state["messages"]})
    return Command(goto="supervise", update={"messages": [("user", f"The writer wrote: {result['messages'][-1].content}")]})


builder = StateGraph(MessagesState)
builder.add_node("supervise", supervise)
builder.add_node("research", research)
builder.add_node("write", write)
builder.add_edge(START, "supervise")
graph = builder.compile()


async def main(question: str) -> str:
    result = await graph.ainvoke({"messages": [("user", question)]})
    return result["messages"][-1].content
