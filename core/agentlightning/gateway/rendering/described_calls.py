"""The format of tool calls of a template that writes none: by the words of its tools section, or by marks in the vocabulary."""

from __future__ import annotations

import re
from typing import Any

from agentlightning.gateway.rendering.tool_format import CallFormat

MARK = r"<[^<>\s]+>"
OBJECT = re.compile(
    rf'(?P<before>{MARK}\s*)\{{\s*"name":\s*[^,{{}}]+,\s*"(?P<arguments>arguments|parameters)":\s*[^{{}}\n]+\}}(?P<after>\s*</[^<>\s]+>)'
)
"""An example of a call, with its arguments left open: `<tool_call>{"name": <function-name>, "arguments": <args>}</tool_call>`."""
LIST = re.compile(rf"(?P<before>{MARK})[^<>\n]{{0,40}}JSON list")
"""Words for calls as a list: `<|tool_call|> followed by a JSON list`."""


def described_format(prompt: str, tokenizer: Any) -> CallFormat | None:
    """The format that a prompt with tools describes, else the one that marks in the vocabulary belong to. None: neither says it."""
    if (match := OBJECT.search(prompt)) is not None:
        return object_format(match["before"], f"{match['after']}\n{match['before']}", match["after"], match["arguments"])
    if (match := LIST.search(prompt)) is not None:
        return object_format(f"{match['before']}[", ", ", "]", "arguments")
    vocabulary = set(tokenizer.get_vocab())
    if {"<|tool_call_start|>", "<|tool_call_end|>"} <= vocabulary:
        return CallFormat("python", "<|tool_call_start|>[", ", ", "]<|tool_call_end|>", "<|tool_call_start|>[", "(")
    if {"<tool_call>", "</tool_call>"} <= vocabulary:
        return object_format("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "arguments")
    if {"[TOOL_CALLS]"} <= vocabulary:
        return object_format("[TOOL_CALLS][", ", ", "]", "arguments")
    if prompt and "<|tool_call|>" in vocabulary:
        return object_format("<|tool_call|>[", ", ", "]", "arguments")
    return None


def object_format(before: str, between: str, after: str, arguments_key: str) -> CallFormat:
    """Calls as JSON objects between these marks."""
    return CallFormat(
        "object", before, between, after, f'{before}{{"name": "', f'", "{arguments_key}": ', arguments_key=arguments_key
    )  # fmt: skip
