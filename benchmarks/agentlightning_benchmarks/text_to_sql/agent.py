"""A LangGraph agent that answers questions with SQL: write, execute, check, and rewrite.

This is ordinary LangGraph code without Agent Lightning. `solve.py` makes it trainable.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from agentlightning_benchmarks.text_to_sql.database import Result, execute, hint

TURNS = 3
"""Maximum number of queries per question."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What the nodes ask the model."""

    system: str
    write: str
    check: str
    rewrite: str
    repair: str | None = None
    """What rewrite asks right after a query that failed to execute. None: check sees the error like any result."""


SHORT = Prompts(
    system="You write SQLite queries.",
    write="Reply with the query only.",
    check="Is this the answer? Reply correct or wrong.",
    rewrite="Write a better query.",
)
"""For a model of 135M parameters that has learned them in a warm-up."""
FULL = Prompts(
    system="You answer questions about an SQLite database. You write one query, see its result, and correct it where it is wrong.",
    write="Write one SQLite query that answers the question. Select only what it asks for. Reply with the query alone, in a ```sql block.",
    check="Does this result answer the question? Reply with one word: correct or wrong.",
    rewrite="Write a better query. Reply with the query alone, in a ```sql block.",
    repair="That query is wrong. Don't repeat it. Read from the right tables, with a JOIN if needed. Reply with a new query alone, in a "
    "```sql block.",
)
"""For a model that follows instructions."""
LETTERS, HINTED_LETTERS = 120, 240
"""Maximum length of a result that the model sees, in characters; the second of an error with a hint."""
ERROR = "error: "
"""Prefix of the message for a query that failed to execute."""
FENCED = re.compile(r"```(?:sql|sqlite)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)


class State(TypedDict):
    """State of one question. `messages` is a single conversation that all nodes continue."""

    question: str
    schema: str
    database: str
    messages: Annotated[list[AnyMessage], add_messages]
    query: str
    result: str
    failed: bool
    right: bool
    turns: int


@tool
async def sql(database: str, query: str, hints: bool = False) -> str:
    """Runs a query on an SQLite file. With `hints`, an error also says what the database has instead of a missing column or table."""
    result = await asyncio.to_thread(execute, database, query)
    if hints and result.error is not None:
        return show(replace(result, error=result.error + await asyncio.to_thread(hint, database, result.error)), letters=HINTED_LETTERS)
    return show(result)


def build_agent(model: BaseChatModel, prompts: Prompts = SHORT) -> Any:
    """Return the compiled graph. Its input is `question`, `schema`, and `database` (a path). Its output adds the last `query`."""

    async def write(state: State) -> dict[str, Any]:
        asked = [SystemMessage(prompts.system), HumanMessage(f"{state['schema']}\n\n{state['question']}\n{prompts.write}")]
        reply = await model.ainvoke(asked)
        return {"messages": [*asked, reply], "query": query_in(str(reply.text)), "turns": 1}

    async def run(state: State) -> dict[str, Any]:
        asked = {"database": state["database"], "query": state["query"], "hints": prompts.repair is not None}
        result = await sql.ainvoke(asked)
        return {"result": result, "failed": result.startswith(ERROR)}

    def after_run(state: State) -> str:
        if state["turns"] == TURNS:  # no node could act on a verdict
            return END
        return "rewrite" if state["failed"] and prompts.repair else "check"

    async def check(state: State) -> dict[str, Any]:
        asked = HumanMessage(f"{state['result']}\n{prompts.check}")
        reply = await model.ainvoke([*state["messages"], asked])
        return {"messages": [asked, reply], "right": is_right(str(reply.text))}

    async def rewrite(state: State) -> dict[str, Any]:
        repairs = state["failed"] and prompts.repair
        asked = HumanMessage(f"{state['result']}\n{prompts.repair}" if repairs else prompts.rewrite)
        reply = await model.ainvoke([*state["messages"], asked])
        return {"messages": [asked, reply], "query": query_in(str(reply.text)), "turns": state["turns"] + 1}

    graph = StateGraph(State)
    graph.add_node("write", write)
    graph.add_node("execute", run)
    graph.add_node("check", check)
    graph.add_node("rewrite", rewrite)
    graph.add_edge(START, "write")
    graph.add_edge("write", "execute")
    graph.add_conditional_edges("execute", after_run, ["check", "rewrite", END])
    graph.add_conditional_edges("check", lambda state: END if state["right"] else "rewrite", ["rewrite", END])
    graph.add_edge("rewrite", "execute")
    return graph.compile(name="text-to-sql")


def query_in(reply: str) -> str:
    """Return the first fenced block of a reply, or the whole reply."""
    fenced = FENCED.search(reply)
    return (fenced.group(1) if fenced else reply).strip()


def is_right(verdict: str) -> bool:
    """Return True if the checker accepts the query."""
    return re.search(r"wrong|incorrect|not correct", verdict, re.IGNORECASE) is None


def show(result: Result, rows: int = 3, letters: int = LETTERS) -> str:
    """Return a result as one line: the number of rows, and the first rows."""
    if result.error is not None:
        return _cut(f"{ERROR}{result.error}", letters)
    if not result.rows:
        return "no rows"
    first = "; ".join(", ".join(str(value) for value in row) for row in result.rows[:rows])
    many = f"{len(result.rows)} rows" if len(result.rows) > 1 else "1 row"
    return _cut(f"{many}: {first}{'; ...' if len(result.rows) > rows else ''}", letters)


def _cut(text: str, letters: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= letters else text[: letters - 3] + "..."
