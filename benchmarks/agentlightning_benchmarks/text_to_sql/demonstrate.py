"""What a good agent would reply to each request of this one, for a supervised warm start.

A query is never demonstrated wrong, for then it would be learned. So that checker and rewriter see mistakes, the model itself writes the
first query of every third task; what follows is demonstrated: the true verdict on that query, and the gold query in its place.
"""

from __future__ import annotations

import hashlib
from typing import Any

from agentlightning_benchmarks.text_to_sql.agent import CHECK, REWRITE, WRITE, query_in
from agentlightning_benchmarks.text_to_sql.reward import reward


def demonstrate(task: dict[str, Any], messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The assistant's message; None where the model shall write for itself, and for requests that are not this agent's."""
    asked = _text(messages[-1])
    if asked.endswith(WRITE):
        return None if attempted(task) else _says(task["query"])
    if asked.endswith(CHECK):
        written = query_in(_text(messages[-2]))
        return _says("correct" if reward(task, written) == 1.0 else "wrong")
    if asked.endswith(REWRITE):
        return _says(task["query"])
    return None


def attempted(task: dict[str, Any]) -> bool:
    """Whether the model writes this task's first query; the same in every run."""
    return int(hashlib.sha256(task["question"].encode()).hexdigest(), 16) % 3 == 0


def _says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text.strip()}


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
