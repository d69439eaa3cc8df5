"""What a request demands of its reply: a format that is asked for, a call of whichever tool."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from gateway_house import CALCULATOR, SEARCH, user

FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "sum", "schema": {"type": "object", "properties": {"value": {"type": "integer"}}}, "strict": True},
}
ASKED = (
    'Reply with one JSON object and nothing else. It must fit this JSON schema: {"type":"object","properties":{"value":{"type":"integer"}}}'
)


async def test_a_schema_stands_in_the_system_message_in_every_turn_and_the_conversation_is_bridged(
    house: Any, caplog: pytest.LogCaptureFixture
) -> None:
    h = await house(['{"value": 7}', '{"value": 14}', "x"])
    attempt = await h.attempt()
    client = h.client(attempt)
    messages: list[Any] = [{"role": "system", "content": "Solve it."}, user("3+4?")]
    with caplog.at_level(logging.WARNING, "agentlightning.gateway"):
        for question in ("and twice?", "and now?"):
            answer = await client.chat.completions.create(model="scripted", messages=messages, response_format=FORMAT)
            messages += [answer.choices[0].message.model_dump(exclude_none=True), user(question)]
    assert len([r for r in caplog.records if "nothing forces it" in r.getMessage()]) == 1
    await client.chat.completions.create(model="scripted", messages=messages)  # another system message: rendered afresh
    records = await h.records(attempt)
    first, second, third = records.completions
    assert h.text(first.prompt_ids).startswith(f"<|im_start|>system\nSolve it.\n\n{ASKED}<|im_end|>\n<|im_start|>user\n3+4?")
    sampled = [*first.prompt_ids, *first.response_ids]
    assert list(second.prompt_ids[: len(sampled)]) == sampled
    assert [call.context for call in records.calls] == ["first", "bridged", "tools changed"]
    assert "JSON" not in h.text(third.prompt_ids)


async def test_json_is_asked_for_where_there_is_no_system_message_and_beside_tools(house: Any) -> None:
    h = await house(["{}", "{}"])
    attempt = await h.attempt()
    client = h.client(attempt)
    ask: dict[str, Any] = {"model": "scripted", "messages": [user("hi")], "response_format": {"type": "json_object"}}
    await client.chat.completions.create(**ask)
    await client.chat.completions.create(**ask, tools=[CALCULATOR])
    plain, tools = [h.text(c.prompt_ids) for c in (await h.records(attempt)).completions]
    assert plain.startswith("<|im_start|>system\nReply with one JSON object and nothing else.<|im_end|>\n<|im_start|>user\nhi")
    assert "nothing else.\n\nTools:\ncalculator" in tools


async def test_a_forced_call_of_a_tool_with_several_parameters_begins_their_object(house: Any) -> None:
    h = await house(['query": "a", "limit": 2})'])
    attempt = await h.attempt()
    schema = {**SEARCH["function"]["parameters"], "required": ["query", "limit"]}
    tool = {"type": "function", "function": {"name": "search", "parameters": schema}}
    answer = await h.client(attempt).chat.completions.create(
        model="scripted", messages=[user("a")], tools=[tool], tool_choice={"type": "function", "function": {"name": "search"}}
    )
    [call] = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"query": "a", "limit": 2}
    assert h.text((await h.records(attempt)).completions[0].prompt_ids).endswith('CALL search({"')


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_of_some_tool_is_forced_up_to_the_name(house: Any, stream: bool) -> None:
    h = await house(['search({"query": "x"})', "unknown(1)"], chunk=2)
    attempt = await h.attempt()
    client = h.client(attempt)
    ask: dict[str, Any] = {"model": "scripted", "messages": [user("a")], "tools": [CALCULATOR, SEARCH], "tool_choice": "required"}
    if stream:
        async with client.chat.completions.stream(**ask) as events:
            message = (await events.get_final_completion()).choices[0].message
    else:
        message = (await client.chat.completions.create(**ask)).choices[0].message
    [call] = message.tool_calls
    assert not message.content
    assert (call.function.name, json.loads(call.function.arguments)) == ("search", {"query": "x"})
    [completion] = (await h.records(attempt)).completions
    assert h.text(completion.prompt_ids).endswith("<|im_start|>assistant\nCALL ")
    # a name that is none: told as it is, since nothing else was sampled
    other = (await client.chat.completions.create(**ask)).choices[0]
    assert (other.message.tool_calls, other.message.content, other.finish_reason) == (None, "CALL unknown(1)", "stop")


async def test_half_a_character_in_an_argument_is_answered_escaped(house: Any) -> None:
    h = await house(['CALL search({"query": "\\ud800"})'])
    attempt = await h.attempt()
    answer = await h.client(attempt).chat.completions.create(model="scripted", messages=[user("a")], tools=[SEARCH])
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"query": "\\ud800"}'
