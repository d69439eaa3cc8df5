"""A graph with a ToolNode whose tool fails at first; the model sees the error and asks again."""

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition


@tool
def square_root(number: int) -> float:
    """The square root of a number that is not negative."""
    if number < 0:
        raise ValueError(f"{number} has no square root")
    return number**0.5


tools = [square_root]
model = ChatOpenAI(model="gpt-4o-mini").bind_tools(tools)


def ask(state: MessagesState) -> MessagesState:
    return {"messages": [model.invoke(state["messages"])]}


builder = StateGraph(MessagesState)
builder.add_node("ask", ask)
builder.add_node("tools", ToolNode(tools, handle_tool_errors=True))
builder.add_edge(START, "ask")
builder.add_conditional_edges("ask", tools_condition)
builder.add_edge("tools", "ask")
graph = builder.compile()


async def main(question: str) -> str:
    return (await graph.ainvoke({"messages": [("user", question)]}))["messages"][-1].content
