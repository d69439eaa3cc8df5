"""What a good agent would reply: its calculations one after the other, then the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentlightning_benchmarks.math.agent import CALLS


def demonstrate(
    task: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The assistant's message for this request, in OpenAI's form. `task` has `steps`, the expressions to work out, and `answer`.

    None where the task has no steps, or more than the agent has calls, and where the conversation left the demonstrated way.
    """
    steps: Sequence[str] = task.get("steps") or ()
    asked = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    own = [message for message in messages[asked + 1 :] if message["role"] == "assistant"]
    offered = any((tool.get("function") or tool).get("name") == "calculator" for tool in tools)
    if not offered or not 0 < len(steps) < CALLS or len(own) > len(steps):
        return None
    if [_expression(message) for message in own] != list(steps[: len(own)]):
        return None
    if len(own) == len(steps):
        return {"role": "assistant", "content": f"The answer is {task['answer']}."}
    function = {"name": "calculator", "arguments": json.dumps({"expression": steps[len(own)]})}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": f"step-{len(own)}", "type": "function", "function": function}]}


def _expression(message: Mapping[str, Any]) -> str | None:
    calls = message.get("tool_calls") or ()
    if len(calls) != 1:
        return None
    try:
        return json.loads(calls[0]["function"]["arguments"])["expression"]
    except (ValueError, KeyError, TypeError):
        return None
