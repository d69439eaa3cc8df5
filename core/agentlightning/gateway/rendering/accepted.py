"""Finds the forms of messages that a chat template accepts, by trying them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from agentlightning.gateway.rendering.marked import NAMES, REPLY, RESULT, THOUGHT, TOOLS, USER, asks, rendered, replies, result
from agentlightning.gateway.rendering.template import Accepts, ChatTemplate

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
SYSTEM, SECOND = {"role": "system", "content": "aglsystem"}, {"role": "user", "content": "aglsecond"}
PYTHON_MAPPING = "{'agl_key_a'"


def accepted_forms(template: ChatTemplate) -> Accepts:
    """The forms that the template accepts."""
    accepts = replace(Accepts(), parts=not _works(template, Accepts(), [USER], USER["content"], tools=_needed(template, Accepts())))
    if accepts.parts and not _works(template, accepts, [USER], USER["content"], tools=_needed(template, accepts)):
        accepts = Accepts()
    needed = _needed(template, accepts)
    if not _works(template, accepts, [SYSTEM, USER], SYSTEM["content"], tools=needed):
        accepts = replace(accepts, system=False)
    if not _works(template, accepts, [USER, SECOND], USER["content"], SECOND["content"], tools=needed):
        accepts = replace(accepts, repeats=False)
    accepts = _reasoning(template, accepts, needed)
    accepts = _results(template, accepts, needed)
    accepts = _shortest(template, accepts)
    both = [USER, asks(content=REPLY, thought=THOUGHT), result()]
    if accepts.reasoning_key is not None and _works(template, accepts, [USER, asks(thought=THOUGHT), result()], tools=TOOLS):
        accepts = replace(accepts, content_beside_reasoning=_works(template, accepts, both, tools=TOOLS))
    return accepts


def _works(template: ChatTemplate, accepts: Accepts, messages: Sequence[Any], *texts: str, tools: Sequence[Any] = ()) -> bool:
    """Whether the template renders these messages in these forms, with these texts."""
    text = rendered(replace(template, accepts=accepts), messages, tools)
    return text is not None and all(word in text for word in texts)


def _needed(template: ChatTemplate, accepts: Accepts) -> Sequence[Any]:
    """The tools without which the template renders nothing."""
    return () if _works(template, accepts, [USER]) else TOOLS


def _reasoning(template: ChatTemplate, accepts: Accepts, needed: Sequence[Any]) -> Accepts:
    """The key of reasoning, after a question or in a tool loop."""
    for key in REASONING_KEYS:
        trial = replace(accepts, reasoning_key=key)
        if _works(template, trial, [USER, replies(THOUGHT)], THOUGHT, tools=needed):
            return trial
        if _works(template, trial, [USER, asks(thought=THOUGHT), result()], THOUGHT, tools=TOOLS):
            return trial
    return accepts


def _results(template: ChatTemplate, accepts: Accepts, needed: Sequence[Any]) -> Accepts:
    """A form in which results of tools appear."""
    if _works(template, accepts, [USER, asks(), result()], RESULT, tools=TOOLS):
        return accepts
    for trial in _call_forms(accepts):
        if _works(template, trial, [USER, asks(), result()], RESULT, NAMES[0], tools=TOOLS):
            return trial
    role = _works(template, accepts, [USER, replies(), result()], RESULT, tools=needed)
    return accepts if role else replace(accepts, tool_role=False)


def _call_forms(accepts: Accepts) -> Iterator[Accepts]:
    for short, as_text, empty in product((False, True), (False, True), ("", None)):
        yield replace(accepts, short_ids=short, arguments_as_text=as_text, empty_content=empty)


def _shortest(template: ChatTemplate, accepts: Accepts) -> Accepts:
    """The form of messages with calls that writes least, and no mapping as Python prints it."""
    loop = [USER, asks(), result()]
    best = rendered(replace(template, accepts=accepts), loop, TOOLS)
    for trial in (replace(accepts, empty_content=None), replace(accepts, arguments_as_text=True)):
        text = rendered(replace(template, accepts=trial), loop, TOOLS)
        if text is None or RESULT not in text or NAMES[0] not in text:
            continue
        shorter = trial.empty_content != accepts.empty_content and best is not None and len(text) < len(best)
        if best is None or shorter or (PYTHON_MAPPING in best and PYTHON_MAPPING not in text):
            best, accepts = text, trial
    return accepts
