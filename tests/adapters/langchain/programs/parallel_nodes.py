"""Two nodes at once, a third over workers that are sent out while it runs, and one that joins them."""

import operator
from typing import Annotated, TypedDict

from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

model = ChatOpenAI(model="gpt-4o-mini")


class State(TypedDict, total=False):
    question: str
    views: Annotated[list[str], operator.add]
    verdict: str


async def view(who: str, question: str) -> dict[str, list[str]]:
    return {"views": [(await model.ainvoke(f"{who}: {question}")).content]}


async def optimist(state: State) -> dict[str, list[str]]:
    return await view("hope", state["question"])


async def pessimist(state: State) -> dict[str, list[str]]:
    return await view("fear", state["question"])


async def critic(state: State) -> dict[str, list[str]]:
    return await view("doubt", state["question"])


def send_critics(state: State) -> list[Send]:
    return [Send("critic", {"question": f"{state['question']} ({n})"}) for n in range(3)]


async def judge(state: State) -> dict[str, str]:
    return {"verdict": (await model.ainvoke("judge: " + " | ".join(sorted(state["views"])))).content}


builder = StateGraph(State)
for name, node in {"optimist": optimist, "pessimist": pessimist, "critic": critic, "judge": judge}.items():
    builder.add_node(name, node)
builder.add_edge(START, "optimist")
builder.add_edge(START, "pessimist")
builder.add_conditional_edges(START, send_critics, ["critic"])
builder.add_edge(["optimist", "pessimist", "critic"], "judge")
builder.add_edge("judge", END)
graph = builder.compile()


async def main(question: str) -> str:
    return (await graph.ainvoke({"question": question}))["verdict"]
