"""What the tests of the adapter for the OpenAI Agents SDK share: prompts read back, and a model's replies."""

from __future__ import annotations

import re
from typing import Any

from agentlightning.types import Sampling


class Prompt:
    """A prompt, read back."""

    def __init__(self, text: str) -> None:
        turns = [turn.partition("\n")[::2] for turn in text.split("<|im_start|>")[1:]]
        self.turns = [(role, said.partition("<|im_end|>")[0]) for role, said in turns[:-1]]
        self.system = next((said for role, said in self.turns if role == "system"), "")
        self.role, self.last = self.turns[-1]
        self.user = next((said for role, said in reversed(self.turns) if role == "user"), "")
        self.tools = re.findall(r"^(\w+)\(", self.system.partition("Tools:\n")[2], re.MULTILINE)


def reply(text: str, sampling: Sampling) -> Any:
    """Calls the first offered tool with 3 where the user asked, then answers."""
    prompt = Prompt(text)
    return f"CALL {prompt.tools[0]}(3)" if prompt.tools and prompt.role == "user" else f"the answer of: {prompt.last}"
