"""A LangChain agent that answers arithmetic word problems with a calculator.

This is ordinary LangChain code without Agent Lightning. `solve.py` makes it trainable.
"""

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from simpleeval import InvalidExpression, simple_eval

INSTRUCTIONS = "Always call the calculator first, then give the answer."

EXAMPLES = (
    ("Sam has 3 pears and gets 4 more. How many pears does Sam have?", "3+4", "7"),
    ("There are 6 bags with 5 balls in each bag. How many balls are there?", "6*5", "30"),
    ("Lea had 9 cakes and ate 2. How many cakes are left?", "9-2", "7"),
)


@tool
def calculator(expression: str) -> str:
    """works out an arithmetic expression."""
    try:
        return f"{simple_eval(expression):g}"
    except (InvalidExpression, SyntaxError, ArithmeticError, TypeError, ValueError, AttributeError, MemoryError) as error:
        return f"error: {error}"


def build_agent(model: BaseChatModel) -> Any:
    """Return the agent, built with LangChain's `create_agent`."""
    return create_agent(model, tools=[calculator], system_prompt=INSTRUCTIONS, name="solver")


def conversation(question: str) -> list[AnyMessage]:
    """Return a few worked examples, then the question."""
    messages: list[AnyMessage] = []
    for number, (asked, expression, result) in enumerate(EXAMPLES):
        call = {"name": "calculator", "args": {"expression": expression}, "id": f"example-{number}"}
        messages += [
            HumanMessage(asked),
            AIMessage("", tool_calls=[call]),
            ToolMessage(result, tool_call_id=f"example-{number}"),
            AIMessage(f"The answer is {result}."),
        ]
    return [*messages, HumanMessage(question)]
