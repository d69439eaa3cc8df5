"""`/v1/responses`: tools in namespaces and custom tools, with the official client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from gateway_house import House

SEARCH: dict[str, Any] = {
    "type": "function",
    "name": "search",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
}
CRM: dict[str, Any] = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [SEARCH]}
PATCH: dict[str, Any] = {
    "type": "custom",
    "name": "patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /a+/"},
}
CALLS = {"crm": 'CALL crm__search({"query": "x"})', "patch": 'CALL patch({"input": "aaa\\nb"})'}


async def first(h: House, client: Any, tool: dict[str, Any], stream: bool) -> Any:
    if not stream:
        return await client.responses.create(model="scripted", input="q", tools=[tool, SEARCH])
    async with client.responses.stream(model="scripted", input="q", tools=[tool, SEARCH]) as events:
        kinds = [event.type async for event in events]
        assert any("input" in kind or "arguments" in kind for kind in kinds)
        return await events.get_final_response()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_in_a_namespace_is_called_in_the_terms_of_the_request_and_its_call_is_bridged(house: Any, stream: bool) -> None:
    h = await house([CALLS["crm"], "done"])
    attempt = await h.attempt()
    client = h.client(attempt)
    answer = await first(h, client, CRM, stream)
    [call] = answer.output
    assert (call.type, call.name, call.namespace, call.arguments) == ("function_call", "search", "crm", '{"query": "x"}')
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "r"}
    history = [{"role": "user", "content": "q"}, call.to_dict(), output]
    await client.responses.create(model="scripted", input=history, tools=[CRM, SEARCH])
    assert [call.context for call in (await h.records(attempt)).calls] == ["first", "bridged"]
    assert "crm__search" in h.text((await h.records(attempt)).completions[0].prompt_ids)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_custom_tool_is_called_with_free_text_and_its_call_is_bridged(
    house: Any, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    h = await house([CALLS["patch"], "done"])
    attempt = await h.attempt()
    client = h.client(attempt)
    answer = await first(h, client, PATCH, stream)
    [call] = answer.output
    assert (call.type, call.name, call.input) == ("custom_tool_call", "patch", "aaa\nb")
    output = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "r"}
    history = [{"role": "user", "content": "q"}, call.to_dict(), output]
    await client.responses.create(model="scripted", input=history, tools=[PATCH, SEARCH])
    assert [call.context for call in (await h.records(attempt)).calls] == ["first", "bridged"]
    prompt = h.text((await h.records(attempt)).completions[0].prompt_ids)
    assert "patch(input): Edits files." in prompt
    assert any("grammar" in text for text in caplog.messages)


@pytest.mark.parametrize("choice", [{"type": "custom", "name": "patch"}, {"type": "function", "name": "search", "namespace": "crm"}])
async def test_such_a_tool_can_be_demanded(house: Any, choice: dict[str, Any]) -> None:
    h = await house(['{"input": "a"})' if choice["type"] == "custom" else '{"query": "a"})'])
    answer = await h.client(await h.attempt()).responses.create(model="scripted", input="q", tools=[PATCH, CRM], tool_choice=choice)
    assert answer.output[0].name == choice["name"]


@pytest.mark.parametrize("tool", [{"type": "web_search"}, {**CRM, "tools": [{"type": "mcp", "name": "m"}]}])
async def test_a_hosted_tool_is_refused_by_its_type(house: Any, tool: dict[str, Any]) -> None:
    h = await house(["x"])
    with pytest.raises(openai.BadRequestError, match="hosts no tools"):
        await h.client(await h.attempt()).responses.create(model="scripted", input="q", tools=[tool])
