"""What the tests of the AutoGen adapter share: a model that follows a plan, and clients as a user builds them."""

from __future__ import annotations

import re
from typing import Any

from autogen_core.models import UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient

from agentlightning.capture.recorder import Recorder
from agentlightning.types import Sampling


def planned(prompt: str, sampling: Sampling) -> str:
    """The system message of an agent says what it replies, turn by turn: `plan: first | second`. The last stands for all after it.
    What a selector of speakers asks is answered with the role that follows the one that spoke last."""
    if "Only return the role" in prompt:
        history = prompt.split("Only return the role.", 1)[1]
        return "critic" if "writer: " in history.rpartition("critic: ")[2] else "writer"
    plan = re.search(r"plan: (.*)", prompt)
    if plan is None:
        return "summary"
    steps = plan[1].removesuffix("<|im_end|>").split(" | ")
    return steps[min(prompt.count("<|im_start|>assistant") - 1, len(steps) - 1)]


def chat(recorder: Recorder, **settings: Any) -> OpenAIChatCompletionClient:
    """A model client as a user builds it from `agl.LLM`."""
    llm = recorder.llm
    info: Any = {"vision": False, "function_calling": True, "json_output": False, "family": "unknown", "structured_output": False}
    given = {"model": llm.model, "base_url": llm.base_url, "api_key": llm.api_key, "max_retries": 0, "model_info": info}
    return OpenAIChatCompletionClient(**{**given, **settings})


def asked(text: str = "question") -> list[Any]:
    return [UserMessage(content=text, source="user")]
