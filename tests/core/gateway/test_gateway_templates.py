"""A conversation through the gateway with a model whose template drops earlier reasoning, over the OpenAI client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import openai
import pytest
from template_world import OFFERED, TEMPLATES, THINKING, make_renderer, make_tokens

from agentlightning.contracts.rendering import RenderingSettings, save_rendering
from agentlightning.errors import ConfigError, GatewayError
from agentlightning.gateway.rendering.load import make_rendering
from agentlightning.gateway.rendering.renderer import Conversation
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


LOOP = "{% for message in messages %}"
DATED = TEMPLATES["hermes"].replace(LOOP, "Today is {{ strftime_now('%d %b %Y') }}." + LOOP, 1)


async def test_a_conversation_keeps_the_date_on_which_its_attempt_began(tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path, DATED)
    renderer = make_renderer(tokens)
    before, after = (datetime(2025, 1, day, 23, 59) for day in (30, 31))
    texts = [tokens.decode(renderer.prompt(Conversation([user("q")], when=when))) for when in (before, after)]
    assert ["30 Jan 2025" in texts[0], "31 Jan 2025" in texts[1]] == [True, True]
    async with AsyncExitStack() as stack:
        house = House(ScriptedEngine(tmp_path, ["a", "b"]), stack)
        await house.gateway.start()
        stack.push_async_callback(house.gateway.stop)
        attempt = await house.attempt()
        client = house.client(attempt)
        await client.chat.completions.create(model="scripted", messages=[user("q")])
        await client.chat.completions.create(model="scripted", messages=[user("q"), {"role": "assistant", "content": "a"}, user("r")])
        records = await house.records(attempt)
    assert [call.context for call in records.calls] == ["first", "bridged"]
    assert f"{datetime.fromtimestamp(attempt.started):%d %b %Y}" in house.text(records.completions[0].prompt_ids)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ raise_exception('for licensed users') }}", "for licensed users"),
        ("a\n{% if %}", "Line 2 of the chat template is not valid Jinja"),
        (None, "no chat template"),
    ],
)
async def test_a_template_that_cannot_render_is_a_400_in_its_words_and_is_refused_before_anything_is_served(
    tmp_path: Path, template: str | None, problem: str
) -> None:
    make_tokens(tmp_path, template)
    if template is None:
        (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=problem):
        make_rendering("m", str(tmp_path))
    async with AsyncExitStack() as stack:
        house = House(ScriptedEngine(tmp_path, ["a"]), stack)
        await house.gateway.start()
        stack.push_async_callback(house.gateway.stop)
        with pytest.raises(openai.BadRequestError, match=problem):
            await house.client(await house.attempt()).chat.completions.create(model="scripted", messages=[user("q")])


@pytest.mark.parametrize("renderer", ["qwen3", "os:getcwd", "nomod:x", "qwen33"])
def test_a_renderer_that_does_not_fit_is_one_clear_error(tmp_path: Path, renderer: str) -> None:
    make_tokens(tmp_path, THINKING)
    with pytest.raises(ConfigError, match="renderer"):
        make_rendering("m", str(tmp_path), RenderingSettings(renderer))


def test_files_of_a_tokenizer_that_say_nothing_are_errors(tmp_path: Path) -> None:
    make_tokens(tmp_path, THINKING)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "foo"}')
    with pytest.raises(GatewayError, match=r"eos_token_id in generation_config.json .* is 'foo'"):
        make_rendering("m", str(tmp_path))


async def test_arguments_of_a_template_are_not_the_request_itself(history: tuple[str, House]) -> None:
    _, h = history
    client = h.client(await h.attempt())
    with pytest.raises(openai.BadRequestError, match="messages is no argument of a chat template"):
        await client.chat.completions.create(model="scripted", messages=[user("q")], extra_body={"chat_template_kwargs": {"messages": []}})
