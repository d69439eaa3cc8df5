"""A conversation through the gateway with a model whose template drops earlier reasoning, over the OpenAI client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from template_world import OFFERED, THINKING, make_tokens

from agentlightning.contracts.rendering import RenderingSettings, save_rendering
from agentlightning.testing.engine import ScriptedEngine
from gateway_house import House, user

SCRIPT = [
    '<think>\nI look.\n</think>\n\n<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>',
    "<think>\nFound.\n</think>\n\nIt is y.",
    "Bye.",
]


@pytest.fixture(params=["template", "exact"])
async def history(request: Any, tmp_path: Path) -> AsyncIterator[tuple[str, House]]:
    make_tokens(tmp_path, THINKING)
    save_rendering(tmp_path, RenderingSettings(history=request.param))
    async with AsyncExitStack() as stack:
        house = House(ScriptedEngine(tmp_path, SCRIPT), stack)
        await house.gateway.start()
        stack.push_async_callback(house.gateway.stop)
        yield request.param, house


async def test_reasoning_that_the_client_drops_is_put_back_and_its_loss_has_a_name(history: tuple[str, House]) -> None:
    mode, h = history
    attempt = await h.attempt()
    client = h.client(attempt)
    messages: list[Any] = [user("q")]
    for new in ("result", "more", None):
        answer = await client.chat.completions.create(model="scripted", messages=messages, tools=OFFERED)
        reply = answer.choices[0].message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})  # no reasoning
        tool = {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": new} if "tool_calls" in reply else user(str(new))
        messages += [reply, tool]
    records = await h.records(attempt)
    contexts = [call.context for call in records.calls]
    assert contexts == ["first", "bridged", "bridged" if mode == "exact" else "rewritten: thinking"]
    prompts = [h.text(completion.prompt_ids) for completion in records.completions]
    assert "I look." in prompts[1]
    assert ("Found." in prompts[2]) == (mode == "exact")
    assert prompts[2].count("It is y.") == 1
