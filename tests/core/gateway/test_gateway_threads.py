"""`thread` of `/v1/messages`: the gateway keeps a conversation, and requests bring only their new messages."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import pytest
from anthropic.types import ThreadNotFoundError
from tests.gateway_house import CALCULATOR, House

from agentlightning.gateway import Gateway
from agentlightning.stores.messages import new_messages
from agentlightning.types import Attempt, Completion, Rollout, Task, new_id

SECRET = "the secret is 7"
TOOLS = [{"name": "calculator", "description": "works it out", "input_schema": CALCULATOR["function"]["parameters"]}]


@anthropic.beta_async_tool
async def weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


def connect(h: House, key: str) -> anthropic.AsyncAnthropic:
    client = anthropic.AsyncAnthropic(base_url=h.gateway.base_url.removesuffix("/v1"), api_key=key, max_retries=0)
    h._stack.push_async_callback(client.close)
    return client


async def run_tools(h: House, key: str, **more: Any) -> str:
    """The answer of the client's own tool loop."""
    runner = connect(h, key).beta.messages.tool_runner(
        model="scripted", max_tokens=50, system="Be kind.", tools=[weather], messages=[{"role": "user", "content": SECRET}], **more
    )
    return (await runner.until_done()).content[0].text


async def ask(h: House, attempt: Attempt, text: str, after: str | None = None, **more: Any) -> Any:
    thread = {"type": "create"} if after is None else {"type": "continue", "previous_message_id": after}
    messages: Any = [{"role": "user", "content": text}]
    client = connect(h, attempt.key)
    return await client.beta.messages.create(**{"model": "scripted", "max_tokens": 50, "messages": messages, "thread": thread, **more})


def starts(later: Completion, earlier: Completion) -> bool:
    sampled = [*earlier.prompt_ids, *earlier.response_ids]
    return later.continues == earlier.id and list(later.prompt_ids[: len(sampled)]) == sampled


@pytest.mark.parametrize("stream", [False, True])
async def test_the_tool_runner_of_anthropics_client_runs_on_one_chain_of_sampled_tokens(house: Any, stream: bool) -> None:
    h = await house(["CALL weather(Oslo)", "CALL weather(Rome)", "It rains."])
    attempt = await h.attempt()
    runner = connect(h, attempt.key).beta.messages.tool_runner(
        model="scripted", max_tokens=50, system="Be kind.", tools=[weather], messages=[{"role": "user", "content": SECRET}], stream=stream
    )
    final = await runner.until_done()
    assert final.content[0].text == "It rains."
    records = await h.records(attempt)
    assert [(call.status, call.context) for call in records.calls] == [("completed", "first"), *[("completed", "bridged")] * 2]
    first, second, third = records.completions
    assert starts(second, first)
    assert starts(third, second)
    prompt = h.engine.asked[-1].prompt
    for text in ("Be kind.", "The weather of a city.", SECRET, "rain in Oslo", "rain in Rome"):
        assert text in prompt
    # the record keeps each message and the tools once
    assert [(call.after, len(new_messages(call) or ()), call.tools_from) for call in records.calls] == [
        (None, 2, None),
        (first.call_id, 1, first.call_id),
        (second.call_id, 1, first.call_id),
    ]


async def test_the_synchronous_tool_runner_gets_the_same(house: Any) -> None:
    h = await house(["CALL weather(Oslo)", "It rains."])
    attempt = await h.attempt()

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather of a city."""
        return f"rain in {city}"

    def work() -> str:
        with anthropic.Anthropic(base_url=h.gateway.base_url.removesuffix("/v1"), api_key=attempt.key) as client:
            runner = client.beta.messages.tool_runner(
                model="scripted", max_tokens=50, tools=[weather], messages=[{"role": "user", "content": SECRET}]
            )
            return runner.until_done().content[0].text  # type: ignore[union-attr]

    assert await asyncio.to_thread(work) == "It rains."
    assert [call.context for call in (await h.records(attempt)).calls] == ["first", "bridged"]


async def test_the_tool_runner_without_a_thread_gets_the_same_prompts(house: Any) -> None:
    h = await house(["CALL weather(Oslo)", "It rains."] * 2)
    for more in ({}, {"thread": False}):
        attempt = await h.attempt()
        assert await run_tools(h, attempt.key, **more) == "It rains."
        assert [call.context for call in (await h.records(attempt)).calls] == ["first", "bridged"]
    prompts = [asked.prompt for asked in h.engine.asked]
    assert prompts[:2] == prompts[2:]


async def test_a_thread_is_continued_by_another_gateway_too(house: Any) -> None:
    h = await house(["CALL calculator(3+4)", "7"])
    attempt = await h.attempt()
    first = await ask(h, attempt, "3+4?", tools=TOOLS, system="Be kind.")
    await h.gateway.stop()
    h.gateway = Gateway(h.store, h.engine)
    await h.gateway.start()
    result = {"type": "tool_result", "tool_use_id": first.content[0].id, "content": "7"}
    second = await ask(h, attempt, "", first.id, messages=[{"role": "user", "content": [result]}])
    assert second.content[0].text == "7"
    assert starts(*reversed((await h.records(attempt)).completions))
    await h.gateway.stop()


async def test_a_thread_continues_twice_from_one_message_and_keeps_its_rules_for_tools(house: Any) -> None:
    h = await house(["one", "two", "CALL calculator(1)"])
    attempt = await h.attempt()
    first = await ask(h, attempt, "a", tools=TOOLS)
    await ask(h, attempt, "b", first.id)
    forced = await ask(h, attempt, "c", first.id, tool_choice={"type": "tool", "name": "calculator"})
    assert forced.content[0].type == "tool_use"
    assert [call.context for call in (await h.records(attempt)).calls] == ["first", "bridged", "bridged"]


async def test_a_thread_of_nobody_is_an_error_of_its_own_type(house: Any) -> None:
    h = await house(["one", "two"])
    attempt, other = await h.attempt(), await h.attempt()
    foreign = await ask(h, other, "a")
    plain = await connect(h, attempt.key).messages.create(model="scripted", max_tokens=9, messages=[{"role": "user", "content": "a"}])
    for id in (foreign.id, plain.id, "msg_nowhere"):
        with pytest.raises(ThreadNotFoundError, match="no thread that ends with the message"):
            await ask(h, attempt, "b", id)
    assert [call.status for call in (await h.records(attempt)).calls] == ["completed", *["refused"] * 3]


async def test_a_client_sends_the_whole_conversation_to_a_gateway_that_lost_its_thread(house: Any) -> None:
    h = await house(["one", "two"], options={"token": "secret"})
    thread = connect(h, "secret").beta.messages.thread(model="scripted", max_tokens=50)
    await thread.send({"role": "user", "content": SECRET})
    port = int(h.gateway.base_url.removesuffix("/v1").rpartition(":")[2])
    await h.gateway.stop()
    h.gateway = Gateway(h.store, h.engine, token="secret", port=port)
    await h.gateway.start()
    await thread.send({"role": "user", "content": "what is it?"})
    assert SECRET in h.engine.asked[-1].prompt
    await h.gateway.stop()


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"system": "Be rude."}, "thread_fingerprint_mismatch"),
        ({"tools": TOOLS}, "thread_fingerprint_mismatch"),
        ({"messages": []}, None),
        ({"thread": {"type": "continue"}}, None),
        ({"thread": {"type": "fork"}}, None),
    ],
)
async def test_a_thread_that_the_gateway_cannot_continue_is_refused(house: Any, more: dict[str, Any], code: str | None) -> None:
    h = await house(["one"])
    attempt = await h.attempt()
    first = await ask(h, attempt, "a")
    with pytest.raises(anthropic.BadRequestError) as error:
        await ask(h, attempt, "b", first.id, **more)
    body: Any = error.value.body
    assert body["error"].get("details", {}).get("error_code") == code


@pytest.mark.parametrize("by", ["attempt", "token"])
async def test_production_calls_continue_a_thread_and_a_response_too(house: Any, by: str) -> None:
    h = await house(["CALL weather(Oslo)", "It rains.", "one", "two"], options={"token": "secret"})
    rollout = Rollout(task=Task(new_id(), None), mode="production")
    key = "secret" if by == "token" else (await h.store.begin(rollout, "test", lease=60)).key
    assert await run_tools(h, key) == "It rains."
    assert SECRET in h.engine.asked[1].prompt
    one = await h.client(key).responses.create(model="scripted", input=SECRET)
    await h.client(key).responses.create(model="scripted", input="what is it?", previous_response_id=one.id)
    assert SECRET in h.engine.asked[3].prompt
    assert len(h.engine.asked) == 4
