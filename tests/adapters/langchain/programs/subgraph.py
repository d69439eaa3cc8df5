"""A graph with a graph inside, and a chain in one of its nodes."""

from typing import TypedDict

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

model = ChatOpenAI(model="gpt-4o-mini")


class State(TypedDict, total=False):
    question: str
    plan: str
    text: str


def plan(state: State) -> State:
    return {"plan": model.invoke(f"plan: {state['question']}").content}


def draft(state: State) -> State:
    chain = ChatPromptTemplate.from_template("draft: {plan}") | model | StrOutputParser()
    return {"text": chain.invoke({"plan": state["plan"]})}


def polish(state: State) -> State:
    return {"text": model.invoke(f"polish: {state['text']}").content}


inner = StateGraph(State)
inner.add_node("draft", draft)
inner.add_node("polish", polish)
inner.add_edge(START, "draft")
inner.add_edge("draft", "polish")
inner.add_edge("polish", END)

outer = StateGraph(State)
outer.add_node("plan", plan)
outer.add_node("team", inner.compile())
outer.add_edge(START, "plan")
outer.add_edge("plan", "team")
outer.add_edge("team", END)
graph = outer.compile()


async def main(question: str) -> str:
    return (await graph.ainvoke({"question": question}))["text"]
