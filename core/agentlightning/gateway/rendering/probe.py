"""What a chat template is, learned from renderings of marked conversations: the forms it accepts, the frames of a reply, its tool calls.

Nothing here knows the name of a model. Each probe renders a short conversation of unmistakable texts and looks where they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from agentlightning.gateway.rendering.accepted import accepted_forms
from agentlightning.gateway.rendering.call_probe import call_format
from agentlightning.gateway.rendering.described_calls import described_format
from agentlightning.gateway.rendering.frames import Frames, reply_frames
from agentlightning.gateway.rendering.marked import NAMES, TAG, TOOLS, USER, header, rendered
from agentlightning.gateway.rendering.template import Accepts, ChatTemplate
from agentlightning.gateway.rendering.tool_format import CallFormat


@dataclass(frozen=True, slots=True)
class Traits:
    """The result of probing a template."""

    accepts: Accepts
    frames: Frames
    calls: CallFormat | None
    """None: the model has no format of tool calls."""
    writes_calls: bool
    """Whether the template writes calls of earlier turns. Otherwise the format is that of its tools section, or of the vocabulary."""
    shows_tools: bool
    """Whether its prompts describe the tools."""
    header: str = ""
    """The end of a prompt, which asks for a reply."""
    several_messages: bool = False
    """Whether one reply can hold several messages of the template, each with a header (gpt-oss)."""


def probe(template: ChatTemplate) -> Traits:
    """Probe a template. Raises `Refused` for one that renders no conversation at all."""
    template = replace(template, accepts=accepted_forms(template))
    tools: Sequence[Any] = TOOLS if rendered(template, [USER]) is None else ()
    template.text([USER], tools)
    frames, ask = reply_frames(template, tools), header(template, tools).strip()
    several = bool(ask) and frames.reasoning is not None and ask in frames.reasoning[1]
    if several and frames.reasoning is not None:
        frames = replace(frames, reasoning=(frames.reasoning[0], frames.reasoning[1].partition(ask)[0]))
    shown = rendered(template, [USER], TOOLS)
    shows_tools = shown is not None and NAMES[0] in shown
    written = call_format(template, frames)
    if written is None:
        calls = described_format(shown if shown is not None and shows_tools else "", template.tokenizer)
        return Traits(template.accepts, frames, calls, False, shows_tools, ask, several)
    calls, call_closing = written
    frames = replace(frames, call_closing=call_closing)
    if several:
        calls = replace(calls, channel=TAG.match(frames.content[0].strip()) is not None, header=ask)
    return Traits(template.accepts, frames, calls, True, shows_tools, ask, several)
