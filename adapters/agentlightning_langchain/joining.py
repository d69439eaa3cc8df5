"""Finds the recorded call behind a LangChain answer.

The gateway sends its call id as `system_fingerprint` and in the id of the answer. `ChatOpenAI` keeps one of them. `ChatAnthropic` keeps the
id, except in a stream. Then the request gives the call id, because the call sent only one.
"""

from __future__ import annotations

from typing import Any, cast

from langchain_core.outputs import LLMResult

from agentlightning.capture.model_call import ModelCall
from agentlightning.capture.to_json import mapping
from agentlightning_langchain.runs import Run


def join(run: Run, call: ModelCall, response: LLMResult | None) -> str | None:
    """End the call. Return its id, or None with the likely cause in the attribute `unjoined`."""
    told = answer_id(run, response) if response is not None else None
    cached = from_cache(response)
    otherwise = None
    if cached:
        otherwise = "a cache: LangChain answered without calling the model"
    elif "error" in run.attributes:
        otherwise = "the model call failed before a request was sent"
    call_id, cause = call.end(None if cached and not call.sent else told, otherwise=otherwise)
    if cause is not None:
        run.attributes["unjoined"] = cause
    return call_id


def answer_id(run: Run, response: LLMResult) -> object:
    """Return what the answer keeps of the call id: a `system_fingerprint`, or its own id, or None."""
    for generation in (generation for prompt in response.generations for generation in prompt):
        message = cast("Any", getattr(generation, "message", None))
        for source in (getattr(message, "response_metadata", None), generation.generation_info):
            if (value := _answer_id(source)) is not None:
                return value
    # Several prompts share the `llm_output` of the first.
    return _answer_id(response.llm_output) if run.prompts == 1 else None


def _answer_id(source: Any) -> object:
    fields = mapping(source)
    return fields.get("system_fingerprint") or fields.get("id")


def from_cache(response: LLMResult | None) -> bool:
    """Return True if LangChain reports a cached answer (it sets the cost to 0)."""
    for prompt in response.generations if response is not None else ():
        for generation in prompt:
            usage = getattr(getattr(generation, "message", None), "usage_metadata", None)
            if isinstance(usage, dict) and cast("dict[str, Any]", usage).get("total_cost") == 0:
                return True
    return False
