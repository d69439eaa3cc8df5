"""Which recorded call a model call of the framework was. Nothing is guessed: a call that cannot be joined says why.

The gateway answers with its call id as `system_fingerprint`, which LangChain keeps, streamed or not. Without it, the id that was
sent counts when only one request can have been the one.
"""

from __future__ import annotations

import re
from typing import Any, cast

from langchain_core.outputs import LLMResult

from agentlightning.recording import Recorder
from agentlightning_langchain.runs import Run, Runs

CALL_ID = re.compile(r"[0-9a-f]{32}")
"""The form of a call id. Vendors use the same field for names of their own (`fp_...`)."""


def join(runs: Runs, run: Run, recorder: Recorder, response: LLMResult | None) -> str | None:
    """The id of the call, or None with the likely cause in the attribute `unjoined`."""
    told = fingerprint(run, response) if response is not None else None
    if told is not None and not run.sent and (run.elsewhere is not None or from_cache(response)):
        told = None
    call_id = told or _sent(run)
    if call_id is None:
        run.attributes["unjoined"] = _cause(run, response)
    elif not runs.join(recorder, call_id):
        run.attributes["unjoined"] = f"a cache: the answer is that of call {call_id}, which another span names already"
        return None
    return call_id


def fingerprint(run: Run, response: LLMResult) -> str | None:
    """The call id that came back with the answer."""
    for generation in (generation for prompt in response.generations for generation in prompt):
        metadata = cast("Any", getattr(generation, "message", None))
        for source in (getattr(metadata, "response_metadata", None), generation.generation_info):
            if (value := _call_id(source)) is not None:
                return value
    # Several prompts share one `llm_output`, which is that of the first.
    return _call_id(response.llm_output) if run.prompts == 1 else None


def _call_id(source: Any) -> str | None:
    value = source.get("system_fingerprint") if isinstance(source, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return value if isinstance(value, str) and CALL_ID.fullmatch(value) else None


def from_cache(response: LLMResult | None) -> bool:
    """Whether LangChain says that the answer came from its cache (it sets the cost to 0)."""
    for prompt in response.generations if response is not None else ():
        for generation in prompt:
            usage = getattr(getattr(generation, "message", None), "usage_metadata", None)
            if isinstance(usage, dict) and cast("dict[str, Any]", usage).get("total_cost") == 0:
                return True
    return False


def _sent(run: Run) -> str | None:
    requests = {request for request, _ in run.sent}
    return run.sent[-1][1] if len(requests) == 1 else None


def _cause(run: Run, response: LLMResult | None) -> str:
    if run.sent:
        return f"{len(run.sent)} requests were sent from this model call, and the answer does not say which one it is of"
    if run.elsewhere is not None:
        return run.elsewhere
    if from_cache(response):
        return "a cache: LangChain answered without calling the model"
    if "error" in run.attributes:
        return "the model call failed before a request was sent"
    return "no request was seen: a cache, a fake model, or a client other than the `openai` library"
