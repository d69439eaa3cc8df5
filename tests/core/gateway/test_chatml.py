"""ChatML and tools as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.gateway.rendering.chatml import ChatMLRenderer
from agentlightning.gateway.rendering.tool_text import describe_tools, read_reply, write_calls
from gateway_house import CALCULATOR, SEARCH, user

SMOL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CLOCK = {"type": "function", "function": {"name": "clock"}}
WAIT = {"type": "function", "function": {"name": "wait", "parameters": {"properties": {"seconds": {"type": "number"}}}}}
TOOLS = [CALCULATOR, SEARCH, CLOCK, WAIT]
texts = st.text(st.sampled_from("ab \n<|é😀{}\"'"), max_size=12)
bodies = st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), texts), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = SMOL
    return tokenizer


@settings(deadline=None)  # the first one compiles the template
@given(system=st.none() | texts, body=bodies)
def test_without_tools_it_renders_the_bytes_of_the_template(tokenizer: Any, system: str | None, body: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in body]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    rendered = ChatMLRenderer(tokenizer).render(messages, add_generation_prompt=True)
    assert rendered.token_ids == expected
    assert len(rendered.message_indices) == len(expected)
    assert set(range(len(messages))) <= set(rendered.message_indices)


@settings(deadline=None)
@given(reply=st.lists(st.integers(0, 258), max_size=8), body=bodies)
def test_a_bridge_starts_with_what_was_sampled_or_is_none(tokenizer: Any, reply: list[int], body: list[tuple[str, str]]) -> None:
    renderer = ChatMLRenderer(tokenizer)
    prompt = renderer.render_ids([user("q")], add_generation_prompt=True)
    bridge = renderer.bridge_to_next_turn(prompt, reply, [{"role": role, "content": content} for role, content in body])
    if any(role == "assistant" for role, _ in body):
        assert bridge is None
    else:
        assert bridge is not None
        assert bridge.token_ids[: len(prompt) + len(reply)] == prompt + reply
        assert bridge.token_ids.count(1) == prompt.count(1) + reply.count(1) + len(body) + 1


def test_it_fits_templates_of_plain_chatml_only(tokenizer: Any) -> None:
    assert ChatMLRenderer.fits(tokenizer)
    for template in (SMOL + "{% if tools %}{{ tools }}{% endif %}", SMOL.replace("'\n'}}", "'\n\n'}}"), None):
        tokenizer.chat_template = template
        assert not ChatMLRenderer.fits(tokenizer)
    tokenizer.chat_template = SMOL


def test_tools_follow_the_default_system_prompt(tokenizer: Any) -> None:
    ids = ChatMLRenderer(tokenizer).render_ids([user("q")], tools=[CALCULATOR])
    assert tokenizer.decode(ids).startswith("<|im_start|>system\nYou are helpful\n\nTools:\ncalculator(expression): works out an ari")


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
