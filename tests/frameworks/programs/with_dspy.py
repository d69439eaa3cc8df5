"""DSPy: a ReAct module with a tool, and a tool that asks another module."""

from __future__ import annotations

import json
import re
from typing import Any

import dspy
from script import number_of

from agentlightning.types import LLM, Sampling


def reply(prompt: str, sampling: Sampling) -> str:
    """The model in DSPy's own text form: the next tool that the prompt describes, then `finish`, then the answer."""
    number = number_of(prompt)
    if "[[ ## next_tool_name ## ]]" not in prompt:
        return f"[[ ## reasoning ## ]]\nBy the tools.\n\n[[ ## answer ## ]]\nThe answer is {number}.\n\n[[ ## completed ## ]]"
    tools = re.findall(r"^ *\(\d+\) (\w+), whose", prompt, re.MULTILINE)
    turn = len(re.findall(r"\[\[ ## tool_name_\d+ ## \]\]", prompt))
    name = tools[min(turn, len(tools) - 1)]
    arguments: dict[str, Any] = {"double": {"x": number}, "triple": {"x": number}, "ask_critic": {"request": f"Solve {number}."}}.get(
        name, {}
    )
    return (
        f"[[ ## next_thought ## ]]\nNow {name}.\n\n[[ ## next_tool_name ## ]]\n{name}\n\n[[ ## next_tool_args ## ]]\n"
        f"{json.dumps(arguments)}\n\n[[ ## completed ## ]]"
    )


class Critic(dspy.ReAct):
    """Checks an answer."""


class Writer(dspy.ReAct):
    """Writes an answer."""


def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


def triple(x: int) -> int:
    """Triples a number."""
    return 3 * x


async def run(llm: LLM, question: str, *, stream: bool) -> str:
    model = dspy.LM(f"openai/{llm.model}", api_base=llm.base_url, api_key=llm.api_key, cache=False)
    with dspy.context(lm=model):
        critic = Critic("question -> answer", tools=[triple])

        async def ask_critic(request: str) -> str:
            """Asks the critic."""
            return (await critic.acall(question=request)).answer

        writer = Writer("question -> answer", tools=[double, ask_critic])
        return (await writer.acall(question=question)).answer
