"""What a good agent would reply: one search for each hop, then the answer, all of it read in the passages that were found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentlightning_benchmarks.rag.reward import MARK, normalise


def demonstrate(
    task: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The assistant's message for this request, in OpenAI's form.

    None where the conversation left the demonstrated way, or a search did not find what its hop asks: a guess is nothing to learn.
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
    """The question of a hop, with the answers of earlier ones in the places of `#1`, `#2`; of `entity >> relation` the words.

    The relation finds nothing more (over MuSiQue's corpus a little less), but it says what to read in the passage that comes next.
    """
    text = hops[number]["question"].replace(">>", " ")
    for earlier in range(number, 0, -1):
        text = text.replace(f"#{earlier}", hops[earlier - 1]["answer"])
    return " ".join(text.split())


def searches(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Query and result of each search since the last user message."""
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
    """Whether the words of an answer stand in a text, next to each other."""
    words = " ".join(normalise(answer))
    return not words or f" {words} " in f" {' '.join(normalise(text))} "
