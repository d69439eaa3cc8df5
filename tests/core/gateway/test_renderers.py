"""Models that the `renderers` library knows, and those that nothing knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentlightning.contracts.engine import EngineInfo
from agentlightning.contracts.rendering import RenderingSettings
from agentlightning.errors import ConfigError
from agentlightning.gateway.rendering.load import load_rendering
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
    h: House = await house(
        lambda prompt, sampling: "It is 7." if "tool_response" in prompt else CALL, options={"rendering": RenderingSettings("qwen3")}
    )
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
    h: House = await house(["<think>\nlong thought\n</think>\n\nshort answer"], options={"rendering": RenderingSettings("qwen3")}, chunk=1)
    object.__setattr__(h.engine.info, "path", str(qwen_folder))
    client = h.client(await h.attempt())
    stream = await client.chat.completions.create(model="scripted", messages=[user("q")], stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces).strip() == "short answer"
    assert len([piece for piece in pieces if piece]) > 3


def test_an_unknown_renderer_is_named_with_the_nearest(tokenizer_folder: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'chatml'"):
        load_rendering(EngineInfo("m", str(tokenizer_folder), 10), RenderingSettings("chatmll"))
