"""Demonstrations of a good agent, for the supervised warm-up.

Wrong queries are never demonstrated, because the model would learn them. In every third task, the model writes the first query itself, so
that checker and rewriter see real mistakes. The demonstrations continue with the true verdict on that query, and with the gold query.
"""

from __future__ import annotations

import hashlib
from typing import Any

from agentlightning_benchmarks.text_to_sql.agent import SHORT, query_in
from agentlightning_benchmarks.text_to_sql.reward import reward


def demonstrate(task: dict[str, Any], messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the assistant message. Return None if the model should write its own reply, and for requests of other agents."""
    asked = _text(messages[-1])
    if asked.endswith(SHORT.write):
        return None if attempted(task) else _says(task["query"])
    if asked.endswith(SHORT.check):
        written = query_in(_text(messages[-2]))
        return _says("correct" if reward(task, written) == 1.0 else "wrong")
    if asked.endswith(SHORT.rewrite):
        return _says(task["query"])
    return None


def attempted(task: dict[str, Any]) -> bool:
    """Return True if the model writes this task's first query. The choice is the same in every run."""
    return int(hashlib.sha256(task["question"].encode()).hexdigest(), 16) % 3 == 0


def _says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text.strip()}


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
