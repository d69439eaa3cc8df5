"""Models that the `renderers` library knows, and those that nothing knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from agentlightning.contracts.engine import EngineInfo
from agentlightning.errors import ConfigError
from agentlightning.gateway.rendering.renderer import load_rendering
from agentlightning.testing.tokenizer import make_tokenizer
from gateway_house import CALCULATOR, House, user

QWEN = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
CALL = '<think>\nhm\n</think>\n\nSure.\n<tool_call>\n{"name": "calculator", "arguments": {"expression": "3+4"}}\n</tool_call>'


@pytest.fixture
def qwen_folder(tmp_path: Path) -> Path:
    tokenizer: Any = make_tokenizer(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", *QWEN]})
    tokenizer.save_pretrained(str(tmp_path))
    return tmp_path


async def test_a_family_of_the_library_calls_tools_reasons_and_bridges(house: Any, qwen_folder: Path) -> None:
    h: House = await house(lambda prompt, sampling: "It is 7." if "tool_response" in prompt else CALL, options={"renderer": "qwen3"})
    object.__setattr__(h.engine.info, "path", str(qwen_folder))
    attempt = await h.attempt()
    client = h.client(attempt)
    ask: dict[str, Any] = {"model": "scripted", "messages": [user("3+4?")], "tools": [CALCULATOR]}
    message = (await client.chat.completions.create(**ask)).choices[0].message
    assert message.content.strip() == "Sure."
    assert message.model_extra["reasoning_content"].strip() == "hm"
    assert json.loads(message.tool_calls[0].function.arguments) == {"expression": "3+4"}
    text, calls = "", []
    async for chunk in await client.chat.completions.create(**ask, stream=True):
        text += chunk.choices[0].delta.content or ""
        calls += chunk.choices[0].delta.tool_calls or []
    assert text == message.content
    assert calls[0].function.arguments == message.tool_calls[0].function.arguments
    history = message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})
    result = {"role": "tool", "tool_call_id": history["tool_calls"][0]["id"], "content": "7"}
    text = ""
    stream = await client.chat.completions.create(
        model="scripted", messages=[user("3+4?"), history, result], tools=[CALCULATOR], stream=True
    )
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
    records = await h.records(attempt)
    assert text == "It is 7."
    assert [c.context for c in records.calls] == ["first", "first", "bridged"]
    first, last = records.completions[0], records.completions[2]
    assert first.renderer == "qwen3"
    assert list(last.prompt_ids[: len(first.prompt_ids) + len(first.response_ids)]) == [*first.prompt_ids, *first.response_ids]


async def test_reasoning_is_not_streamed_as_content(house: Any, qwen_folder: Path) -> None:
    h: House = await house(["<think>\nlong thought\n</think>\n\nshort answer"], options={"renderer": "qwen3"}, chunk=1)
    object.__setattr__(h.engine.info, "path", str(qwen_folder))
    client = h.client(await h.attempt())
    stream = await client.chat.completions.create(model="scripted", messages=[user("q")], stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces).strip() == "short answer"
    assert len([piece for piece in pieces if piece]) > 3


async def test_tools_that_would_vanish_without_a_word_are_refused(house: Any) -> None:
    h: House = await house(["x"], options={"renderer": "default"})
    client = h.client(await h.attempt())
    with pytest.raises(openai.BadRequestError, match="'default' of this model reads no tool calls"):
        await client.chat.completions.create(model="scripted", messages=[user("q")], tools=[CALCULATOR])
    answer = await client.chat.completions.create(model="scripted", messages=[user("q")])
    assert answer.choices[0].message.content == "x"


def test_an_unknown_renderer_is_named_with_the_nearest(tokenizer_folder: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'chatml'"):
        load_rendering(EngineInfo("m", str(tokenizer_folder), 10), "b", "chatmll")


def test_the_model_that_it_was_trained_from_decides_the_renderer(qwen_folder: Path) -> None:
    info = EngineInfo("mine", str(qwen_folder), 10)
    assert load_rendering(info, "Qwen/Qwen3-0.6B", "auto").name == "qwen3"
    assert load_rendering(info, "somebody/else", "auto").name == "chatml"
