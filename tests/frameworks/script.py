"""The model of the framework programs: it calls every tool that it is offered once, in their order, then answers with the user's number."""

from __future__ import annotations

import json
import re

from agentlightning.types import Sampling

MARK = "<|im_start|>"


def reply(prompt: str, sampling: Sampling) -> str:
    """Call the next tool of the prompt, or answer."""
    system, turns = prompt.split("\nTo use a tool", 1)[0], prompt.count(f"{MARK}assistant\n") - 1
    number = number_of(prompt)
    section = system.rpartition("\nTools:\n")[2] if "Tools:\n" in system else ""
    tools = re.findall(r"^(\w+)\(([^)]*)\)", section, re.MULTILINE)
    tools.sort(key=lambda tool: tool[0] == "final_answer")  # smolagents' end
    if turns >= len(tools):
        return f"The answer is {number}."
    name, parameters = tools[turns]
    arguments = {parameter: argument(parameter, number) for parameter in parameters.split(", ") if parameter}
    call = f"CALL {name}({json.dumps(arguments)})"
    forced = prompt.rpartition(f"{MARK}assistant\n")[2]  # the start of a reply that must be a call
    return call.removeprefix(forced)


def argument(parameter: str, number: int) -> object:
    """A value for a parameter, by its name."""
    values: dict[str, object] = {"x": number, "additional_args": {}}
    return values.get(parameter, f"Solve {number}.")


def number_of(prompt: str) -> int:
    """The number in the question: "Solve 4."."""
    match = re.search(r"Solve (\d+)", prompt)
    assert match is not None, prompt
    return int(match[1])
