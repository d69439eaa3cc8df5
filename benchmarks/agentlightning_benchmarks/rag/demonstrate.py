"""Demonstrations of a good agent: one search per hop, then the answer, read from the retrieved passages only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentlightning_benchmarks.rag.reward import MARK, normalise


def demonstrate(
    task: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return the assistant message for this request, in OpenAI format.

    Returns None if the conversation left the demonstrated path, or if a search missed its hop's answer. A guess teaches nothing.
    """
    hops: Sequence[Mapping[str, str]] = task["decomposition"]
    turn = searches(messages)
    if not hops or not any((tool.get("function") or tool).get("name") == "search" for tool in tools):
        return None
    if len(turn) > len(hops):
        return None
    for number, (query, result) in enumerate(turn):
        if query != query_of(hops, number) or not _holds(result, hops[number]["answer"]):
            return None
    if len(turn) == len(hops):
        return {"role": "assistant", "content": f"{MARK} {task['answer']}"}
    function = {"name": "search", "arguments": json.dumps({"query": query_of(hops, len(turn))}, ensure_ascii=False)}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": f"search-{len(turn)}", "type": "function", "function": function}],
    }


def query_of(hops: Sequence[Mapping[str, str]], number: int) -> str:
    """Return a hop's question, with `#1` and `#2` replaced by earlier answers and `entity >> relation` replaced by its words.

    The relation does not improve retrieval (slightly worse on MuSiQue), but it tells the model what to read in the next passage.
    """
    text = hops[number]["question"].replace(">>", " ")
    for earlier in range(number, 0, -1):
        text = text.replace(f"#{earlier}", hops[earlier - 1]["answer"])
    return " ".join(text.split())


def searches(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the query and result of each search since the last user message."""
    last = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=-1)
    queries: dict[str, str] = {}
    results: list[tuple[str, str]] = []
    for message in messages[last + 1 :]:
        for call in message.get("tool_calls") or ():
            queries[str(call["id"])] = str(json.loads(call["function"]["arguments"]).get("query"))
        if message["role"] == "tool":
            results.append((queries.get(str(message.get("tool_call_id")), ""), str(message.get("content"))))
    return results


def _holds(text: str, answer: str) -> bool:
    """Return True if the words of an answer occur in a text consecutively."""
    words = " ".join(normalise(answer))
    return not words or f" {words} " in f" {' '.join(normalise(text))} "
