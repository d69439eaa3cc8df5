"""A forced call whose arguments are JSON, but no object: every client reads an invalid call, sends it back, and is bridged."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from tests.gateway_house import House

from agentlightning.gateway.api.tool_arguments import (
    marked_arguments,
    marked_input,
    unmarked_arguments,
    unmarked_input,
)
from agentlightning.types import Attempt

NOTHING: Any = {"type": "object", "properties": {}}  # a call of a tool with parameters begins its object in the prompt
CHAT_TOOL: Any = {"type": "function", "function": {"name": "ping", "description": "answers", "parameters": NOTHING}}
RESPONSES_TOOL: Any = {"type": "function", "name": "ping", "description": "answers", "parameters": NOTHING, "strict": False}
MESSAGES_TOOL: Any = {"name": "ping", "description": "answers", "input_schema": NOTHING}
SAMPLED = ["5)", "[1])", "null)"]


async def check_bridged(h: House, attempt: Attempt, sampled: str) -> None:
    """The record has the sampled tokens and arguments, and the second call continues them."""
    first, second = (records := await h.records(attempt)).completions
    assert h.text(first.response_ids).startswith(sampled)
    assert first.message["tool_calls"][0]["function"]["arguments"] == sampled.removesuffix(")")
    assert [call.context for call in records.calls] == ["first", "bridged"]
    assert list(second.prompt_ids[: len(first.prompt_ids) + len(first.response_ids)]) == [*first.prompt_ids, *first.response_ids]


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("sampled", SAMPLED)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("responses", [False, True])
async def test_chat_openai_reads_an_invalid_tool_call(house: Any, responses: bool, stream: bool, sampled: str) -> None:
    h = await house([sampled, "done"])
    attempt = await h.attempt()
    model = ChatOpenAI(model="scripted", base_url=h.gateway.base_url, api_key=attempt.key, use_responses_api=responses, max_retries=0)
    forced: Any = model.bind_tools([CHAT_TOOL], tool_choice="ping")
    if stream:
        chunks = [chunk async for chunk in forced.astream("hi")]
        answer: Any = sum(chunks[1:], start=chunks[0])
    else:
        answer = await forced.ainvoke("hi")
    assert answer.tool_calls == []
    [call] = answer.invalid_tool_calls
    assert (call["name"], is_json(call["args"])) == ("ping", False)
    message = AIMessage(answer.content, invalid_tool_calls=answer.invalid_tool_calls) if stream and not responses else answer
    await model.bind_tools([CHAT_TOOL]).ainvoke([HumanMessage("hi"), message, ToolMessage("not an object", tool_call_id=call["id"])])
    await check_bridged(h, attempt, sampled)


@pytest.mark.parametrize("sampled", SAMPLED)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_chat_client_gets_text_that_is_no_json(house: Any, stream: bool, sampled: str) -> None:
    h = await house([sampled, "done"])
    attempt = await h.attempt()
    asked: Any = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "tools": [CHAT_TOOL]}
    client = h.client(attempt)
    if stream:
        async with client.chat.completions.stream(**asked, tool_choice="required") as events:
            message = (await events.get_final_completion()).choices[0].message
    else:
        message = (await client.chat.completions.create(**asked, tool_choice="required")).choices[0].message
    [call] = message.tool_calls
    assert not is_json(call.function.arguments)
    calls = [{"id": call.id, "type": "function", "function": {"name": "ping", "arguments": call.function.arguments}}]
    back = [{"role": "assistant", "tool_calls": calls}, {"role": "tool", "tool_call_id": call.id, "content": "not an object"}]
    await client.chat.completions.create(**{**asked, "messages": [*asked["messages"], *back]})
    await check_bridged(h, attempt, sampled)


@pytest.mark.parametrize("by", ["history", "id"])
@pytest.mark.parametrize("sampled", SAMPLED)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_responses_client_gets_text_that_is_no_json(house: Any, stream: bool, sampled: str, by: str) -> None:
    h = await house([sampled, "done"])
    attempt = await h.attempt()
    asked: Any = {"model": "scripted", "input": [{"role": "user", "content": "hi"}], "tools": [RESPONSES_TOOL]}
    client = h.client(attempt)
    if stream:
        async with client.responses.stream(**asked, tool_choice="required") as events:
            answer = await events.get_final_response()
    else:
        answer = await client.responses.create(**asked, tool_choice="required")
    [call] = answer.output
    assert not is_json(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "not an object"}
    if by == "id":
        await client.responses.create(**{**asked, "input": [result], "previous_response_id": answer.id})
    else:
        item = {"type": "function_call", "call_id": call.call_id, "name": "ping", "arguments": call.arguments}
        await client.responses.create(**{**asked, "input": [*asked["input"], item, result]})
    await check_bridged(h, attempt, sampled)


@pytest.mark.parametrize("sampled", SAMPLED)
@pytest.mark.parametrize("stream", [False, True])
async def test_anthropics_client_gets_an_object_that_fits_no_tool(house: Any, stream: bool, sampled: str) -> None:
    h = await house([sampled, "done"])
    attempt = await h.attempt()
    asked: Any = {"model": "scripted", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}], "tools": [MESSAGES_TOOL]}
    async with anthropic.AsyncAnthropic(base_url=h.gateway.base_url.removesuffix("/v1"), api_key=attempt.key) as client:
        if stream:
            async with client.messages.stream(**asked, tool_choice={"type": "any"}) as events:
                answer = await events.get_final_message()
        else:
            answer = await client.messages.create(**asked, tool_choice={"type": "any"})
        [block] = answer.content
        assert block.input == {"INVALID_JSON": sampled.removesuffix(")")}
        result = {"type": "tool_result", "tool_use_id": block.id, "content": "not an object", "is_error": True}
        back = [answer.to_param(), {"role": "user", "content": [result]}]
        await client.messages.create(**{**asked, "messages": [*asked["messages"], *back]})
    await check_bridged(h, attempt, sampled)


json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
texts = (
    st.text()
    | json_values.map(json.dumps)
    | json_values.map(lambda value: marked_arguments(json.dumps(value)))
    | st.text().map(lambda text: json.dumps({"INVALID_JSON": text}))
    | st.just("[" * 100_000)
)


@given(texts)
def test_a_mark_comes_off_again_and_leaves_no_json_but_objects(text: str) -> None:
    marked = marked_arguments(text)
    assert unmarked_arguments(marked) == text
    assert marked.startswith("[[[") or not is_json(marked) or isinstance(json.loads(marked), dict)
    input = marked_input(text)
    sampled = unmarked_input(input)
    assert sampled == text or (sampled is None and json.loads(text) == input)
