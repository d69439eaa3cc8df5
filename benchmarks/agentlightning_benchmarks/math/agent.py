"""An AutoGen agent that solves word problems with a calculator.

This is ordinary AutoGen code without Agent Lightning. `solve.py` makes it trainable.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from autogen_agentchat.agents import AssistantAgent
from autogen_core import FunctionCall
from autogen_core.model_context import UnboundedChatCompletionContext
from autogen_core.models import (
    AssistantMessage,
    ChatCompletionClient,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    LLMMessage,
    UserMessage,
)
from autogen_core.tools import FunctionTool
from simpleeval import InvalidExpression, SimpleEval


class Example(NamedTuple):
    """A worked example. A model that writes a thought first finds the expression more often, but small ones copy the text."""

    question: str
    expression: str
    result: str
    thought: str | None = None


@dataclass(frozen=True, slots=True)
class Prompts:
    """What the agent tells the model."""

    instructions: str
    examples: tuple[Example, ...]


SHORT = Prompts(
    instructions="Call the calculator, then give the answer.",
    examples=(
        Example("There are 6 bags with 5 balls in each bag. How many balls are there?", "6*5", "30"),
        Example("Lea had 9 cakes and ate 2. How many cakes are left?", "9-2", "7"),
        Example("Sam has 3 pears and gets 4 more. How many pears does Sam have?", "3+4", "7"),
    ),
)
"""For a model of 135M parameters. It copies longer examples."""
FULL = Prompts(
    instructions=(
        "Solve the problem. First think. Then call the calculator with one expression for the whole problem, then give the answer."
    ),
    examples=(
        Example(
            question="A shop sells 14 red and 9 blue pens a day, for 3 dollars each. How much money does it take in 5 days?",
            thought="The shop sells 14+9 pens a day, in 5 days 5 times as many, and takes 3 dollars for each.",
            expression="(14+9)*3*5",
            result="345",
        ),
        Example(
            question="Ada's book has 150 pages. She reads 20 pages on Monday and twice as many on Tuesday. How many pages are left?",
            thought="Ada reads 20 pages on Monday and 20*2 on Tuesday. The rest of 150 pages is left.",
            expression="150-20-20*2",
            result="90",
        ),
        Example(
            question=(
                "A farmer has 60 eggs. He sells a third of them and drops 4. He packs the rest into boxes of 6. How many boxes does he "
                "fill?"
            ),
            thought="He sells 60/3 eggs and drops 4. The rest is divided by 6.",
            expression="(60-60/3-4)/6",
            result="6",
        ),
    ),
)
"""For a model that follows instructions, and problems of several steps."""
CALLS = 6
"""Maximum number of model calls per problem."""
LONGEST = 200
"""Maximum length of an expression in characters."""
HIGHEST_POWER, HIGHEST_BASE = 64, 10**12
"""Higher powers take too long to compute."""


def on_numbers(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Restrict an operation to numbers. Otherwise Python could repeat a text a billion times."""

    def checked(*values: Any) -> Any:
        if not all(isinstance(value, int | float) for value in values):
            raise ValueError("only numbers can be calculated with")
        return operation(*values)

    return checked


def power(base: float, exponent: float) -> float:
    if abs(exponent) > HIGHEST_POWER or abs(base) > HIGHEST_BASE:
        raise ValueError(f"the power is too high; at most {HIGHEST_BASE}**{HIGHEST_POWER}")
    return base**exponent


OPERATORS: dict[type[ast.AST], Any] = {
    ast.Add: on_numbers(operator.add),
    ast.Sub: on_numbers(operator.sub),
    ast.Mult: on_numbers(operator.mul),
    ast.Div: on_numbers(operator.truediv),
    ast.FloorDiv: on_numbers(operator.floordiv),
    ast.Mod: on_numbers(operator.mod),
    ast.Pow: on_numbers(power),
    ast.USub: on_numbers(operator.neg),
    ast.UAdd: on_numbers(operator.pos),
}


def calculate(expression: str) -> float:
    """Evaluate an arithmetic expression of numbers, parentheses, and the operators above. Raises `ValueError` for anything else."""
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has more than {LONGEST} characters")
    try:
        parsed = ast.parse(expression.strip(), mode="eval").body  # a single expression: simpleeval reads `x = 3; 4` as 3, with a warning
        value: Any = SimpleEval(operators=OPERATORS, functions={}, names={}).eval(expression, parsed)
    except (InvalidExpression, SyntaxError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("the result is no number")
    return value


def calculator(expression: str) -> str:
    """works out an arithmetic expression."""
    try:
        return f"{calculate(expression):.10g}"
    except (ValueError, OverflowError) as error:  # an integer too large for a float raises OverflowError when formatted
        return f"error: {error}"


def build_agent(model: ChatCompletionClient, prompts: Prompts = SHORT) -> AssistantAgent:
    """Return the agent for one problem, with a few worked examples in its conversation."""
    return AssistantAgent(
        "solver",
        model,
        tools=[FunctionTool(calculator, description="works out an arithmetic expression.")],
        system_message=prompts.instructions,
        model_context=UnboundedChatCompletionContext(initial_messages=worked_examples(prompts)),
        max_tool_iterations=CALLS,
    )


def worked_examples(prompts: Prompts) -> list[LLMMessage]:
    messages: list[LLMMessage] = []
    for number, example in enumerate(prompts.examples):
        call = FunctionCall(id=f"example-{number}", name="calculator", arguments=f'{{"expression": "{example.expression}"}}')
        done = FunctionExecutionResult(content=example.result, name="calculator", call_id=call.id, is_error=False)
        messages += [
            UserMessage(content=example.question, source="user"),
            AssistantMessage(content=[call], thought=example.thought, source="solver"),
            FunctionExecutionResultMessage(content=[done]),
            AssistantMessage(content=f"The answer is {example.result}.", source="solver"),
        ]
    return messages
