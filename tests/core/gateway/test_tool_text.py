"""Tools as text, for models whose chat template has none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.gateway.rendering.tool_text import describe_tools, read_reply, write_calls
from gateway_house import CALCULATOR, SEARCH

CLOCK = {"type": "function", "function": {"name": "clock"}}
WAIT = {"type": "function", "function": {"name": "wait", "parameters": {"properties": {"seconds": {"type": "number"}}}}}
TOOLS = [CALCULATOR, SEARCH, CLOCK, WAIT]
texts = st.text(st.sampled_from("ab \n<|é😀{}\"'"), max_size=12)


def test_a_tool_is_described_in_one_line() -> None:
    assert describe_tools(TOOLS).split("\n") == [
        "Tools:",
        "calculator(expression): works out an arithmetic expression.",
        "search(query, limit)",
        "clock()",
        "wait(seconds)",
        "To use a tool, reply with one line: CALL tool(argument)",
        "The argument of a tool with several parameters is a JSON object.",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("CALL calculator(3 + 4)", ("calculator", {"expression": "3 + 4"})),
        ('  CALL calculator ({"expression": "3"})', ("calculator", {"expression": "3"})),
        ('CALL calculator({"other": 1})', ("calculator", {"expression": '{"other": 1}'})),
        ('CALL search({"query": "a", "limit": 2})', ("search", {"query": "a", "limit": 2})),
        ("CALL clock()", ("clock", {})),
        ("CALL wait(2.5)", ("wait", {"seconds": 2.5})),
        ('CALL search("a", 2)', ("search", {"query": "a", "limit": 2})),
        ("CALL search(limit=2, query='a')", ("search", {"limit": 2, "query": "a"})),
        ('CALL search("a", query="b")', None),
        ('CALL search("a", 2, 3)', None),
        ("CALL search(open('x'))", None),
        ("CALL search(a)", None),
        ("CALL calculator()", None),
        ("CALL me(maybe)", None),
        ("CALL calculator(3 = 3", None),
        ("call calculator 3", None),
        ("I CALL calculator(3)", None),
    ],
)
def test_a_line_is_a_call_of_an_offered_tool_or_text(line: str, expected: Any) -> None:
    content, calls = read_reply(line, TOOLS)
    assert [(c.name, json.loads(c.arguments)) for c in calls] == ([expected] if expected else [])
    assert content == ("" if expected else line)
    assert read_reply(line, None) == (line, ())
    assert read_reply(line, TOOLS, end="cut") == (line, ())


arguments = st.one_of(
    st.tuples(st.just("calculator"), st.fixed_dictionaries({"expression": texts})),
    st.tuples(st.just("search"), st.fixed_dictionaries({"query": texts, "limit": st.integers()})),
    st.tuples(st.just("clock"), st.just({})),
    st.tuples(st.just("wait"), st.fixed_dictionaries({"seconds": st.integers() | st.booleans()})),
)


@given(content=st.sampled_from(["", "So:", "a\nb"]), calls=st.lists(arguments, min_size=1, max_size=3))
def test_what_is_written_reads_back_as_the_same_calls(content: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    asked = [{"id": "x", "function": {"name": name, "arguments": json.dumps(fields)}} for name, fields in calls]
    back, read = read_reply(write_calls(content, asked, TOOLS), TOOLS)
    assert back == content
    assert [(c.name, json.loads(c.arguments)) for c in read] == calls


@given(
    lines=st.lists(st.sampled_from(["CALL calculator(3)", "CALL me", "CAL", "", "text", " CALL clock()", "C"]), max_size=6),
    end=st.sampled_from(["whole", "cut"]),
)
def test_the_content_of_an_open_reply_only_grows_to_the_final_one(lines: list[str], end: Any) -> None:
    text = "\n".join(lines)
    final, calls = read_reply(text, TOOLS, end=end)
    sent = ""
    for size in range(len(text) + 1):
        content, _ = read_reply(text[:size], TOOLS, end="open")
        assert content.startswith(sent)
        sent = content
    assert final.startswith(sent)
    assert len(calls) == sum(line in ("CALL calculator(3)", " CALL clock()") for line in (lines if end == "whole" else lines[:-1]))
