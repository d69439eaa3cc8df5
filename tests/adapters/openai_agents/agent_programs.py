"""Programs as users of the OpenAI Agents SDK write them. Nothing here knows of Agent Lightning.

`plan: first | second` in an agent's instructions says what the model replies, turn by turn.
"""

from __future__ import annotations

from typing import Any

from agents import Agent, GuardrailFunctionOutput, InputGuardrail, Runner, function_tool


@function_tool
def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


@function_tool
def triple(x: int) -> int:
    """Triples a number."""
    return 3 * x


def agent(name: str, plan: str, **settings: Any) -> Agent[Any]:
    return Agent(name=name, model="gpt-4o-mini", instructions=f"plan: {plan}", **settings)


def single() -> Agent[Any]:
    return agent("solver", "CALL double(3) | it is 6", tools=[double])


def handoffs() -> Agent[Any]:
    """A triage hands off to an expert, which hands off to a writer."""
    writer = agent("writer", "a text")
    expert = agent("expert", "CALL triple(3) | CALL transfer_to_writer()", tools=[triple], handoffs=[writer])
    return agent("triage", "CALL transfer_to_expert()", handoffs=[expert])


def agents_as_tools() -> Agent[Any]:
    """An agent with agents as tools, one of which hands off to another."""
    french = agent("french", "bonjour")
    spanish = agent("spanish", "CALL transfer_to_french()", handoffs=[french])
    helper = agent("helper", "CALL triple(5) | fifteen", tools=[triple])
    tools = [
        helper.as_tool(tool_name="ask_helper", tool_description="Asks the helper."),
        spanish.as_tool(tool_name="translate", tool_description="Translates."),
    ]
    return agent("boss", 'CALL ask_helper({"input": "five"}) | CALL translate({"input": "hello"}) | done', tools=tools)


def guarded() -> Agent[Any]:
    """An agent whose input another agent checks."""
    checker = agent("checker", "fine")

    async def check(context: Any, checked: Agent[Any], question: Any) -> GuardrailFunctionOutput:
        result = await Runner.run(checker, question)
        return GuardrailFunctionOutput(result.final_output, tripwire_triggered=False)

    return agent("solver", "CALL double(3) | it is 6", tools=[double], input_guardrails=[InputGuardrail(check, run_in_parallel=False)])
