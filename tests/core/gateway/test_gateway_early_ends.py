"""Streams that an agent leaves early, and clients that outlive their event loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from tests.gateway_house import House, eventually

import agentlightning as agl
import agentlightning_langchain
from agentlightning.capture.end_calls import end_calls
from agentlightning.types import LLM

HI: Any = [{"role": "user", "content": "hi"}]
LONG = "hello there, this is a long reply of many words " * 6
HELD: list[Any] = []  # by a program that never closes its streams


async def leave_chat(llm: LLM) -> None:
    client = openai.AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key)
    async for chunk in await client.chat.completions.create(model=llm.model, messages=HI, stream=True):
        if chunk.choices[0].delta.content:
            break


async def leave_responses(llm: LLM) -> None:
    client = openai.AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key)
    async for event in await client.responses.create(model=llm.model, input="hi", stream=True):
        if event.type == "response.output_text.delta":
            break


async def leave_messages(llm: LLM) -> None:
    client = anthropic.AsyncAnthropic(base_url=llm.base_url.removesuffix("/v1"), api_key=llm.api_key)
    async for event in await client.messages.create(model=llm.model, max_tokens=400, messages=HI, stream=True):
        if event.type == "content_block_delta":
            break


async def leave_httpx(llm: LLM) -> None:
    client = httpx.AsyncClient(headers={"authorization": f"Bearer {llm.api_key}"})
    request = client.build_request("POST", f"{llm.base_url}/chat/completions", json={"model": llm.model, "messages": HI, "stream": True})
    async for _ in (await client.send(request, stream=True)).aiter_bytes():
        break


async def leave_chat_openai(llm: LLM) -> None:
    model = ChatOpenAI(model=llm.model, base_url=llm.base_url, api_key=llm.api_key)  # type: ignore[arg-type]
    async for chunk in model.astream("hi"):
        if chunk.content:
            break


async def hold_chat_openai(llm: LLM) -> None:
    model = ChatOpenAI(model=llm.model, base_url=llm.base_url, api_key=llm.api_key)  # type: ignore[arg-type]
    stream = model.astream("hi")
    HELD.append(stream)
    async for chunk in stream:
        if chunk.content:
            break


LEAVING = [leave_chat, leave_responses, leave_messages, leave_httpx, leave_chat_openai, hold_chat_openai]


@pytest.mark.parametrize(
    ("leave", "adapter"), [*((leave, False) for leave in LEAVING), (leave_chat_openai, True), (hold_chat_openai, True)]
)
async def test_a_stream_left_early_is_recorded_before_the_end_of_its_attempt_and_leaves_no_fault(
    house: Any, caplog: Any, leave: Callable[[LLM], Awaitable[None]], adapter: bool
) -> None:
    h: House = await house(lambda prompt, sampling: LONG, chunk=2, delay=0.02)
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    if adapter:
        agentlightning_langchain.install(models=["*"])
    try:
        async with agl.rollout({"q": 1}, store=h.store, gateway=h.gateway.base_url, model="scripted") as rollout:
            await leave(rollout.llm)
        records = await h.store.records(rollout.attempt_id)
        HELD.clear()
        gc.collect()
        await asyncio.sleep(0.1)
    finally:
        agentlightning_langchain.uninstall()
    assert [call.status for call in records.calls] == ["cancelled"]
    assert await h.store.records(rollout.attempt_id) == records
    assert [asked.status for asked in h.engine.asked] == ["aborted"]
    assert faults == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_the_end_of_an_attempt_tells_the_clients_that_still_wait(house: Any) -> None:
    h = await house(lambda prompt, sampling: LONG, chunk=2, delay=0.1)
    attempt = await h.attempt()
    client = h.client(attempt)
    stream = await client.chat.completions.create(model="scripted", messages=HI, stream=True)
    await anext(aiter(stream))
    waiting = asyncio.create_task(client.chat.completions.create(model="scripted", messages=HI))

    async def both_run() -> bool:
        return len(h.engine.asked) == 2

    await eventually(both_run)
    async with httpx.AsyncClient(base_url=h.gateway.base_url) as plain:
        assert (await plain.delete("/calls", headers={"x-api-key": "nobody's"})).status_code == 401
        for cancelled in (2, 0):
            answer = await plain.delete("/calls", headers={"x-api-key": attempt.key})
            assert answer.json() == {"cancelled": cancelled}
            calls = (await h.records(attempt)).calls
            assert [(call.status, call.detail) for call in calls] == [("cancelled", "the attempt ended before the call")] * 2
    with pytest.raises(openai.AuthenticationError, match="The attempt ended"):
        await waiting
    with pytest.raises(openai.APIError, match="The attempt ended"):
        async for _ in stream:
            pass


@pytest.mark.parametrize("kind", ["invoke", "stream", "openai", "anthropic"])
async def test_a_client_works_in_a_second_event_loop(house: Any, kind: str) -> None:
    h = await house(lambda prompt, sampling: "hello")
    llm = h.llm(await h.attempt())
    chat = openai.AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0)
    messages = anthropic.AsyncAnthropic(base_url=llm.base_url, api_key=llm.api_key, max_retries=0)

    async def ask() -> Any:
        if kind == "openai":
            return (await chat.chat.completions.create(model=llm.model, messages=HI)).choices[0].message.content
        if kind == "anthropic":
            return (await messages.messages.create(model=llm.model, max_tokens=9, messages=HI)).content[0].text  # type: ignore[union-attr]
        model = ChatOpenAI(model=llm.model, base_url=llm.base_url, api_key=llm.api_key, max_retries=0)  # shares a client
        return (await model.ainvoke("hi")).content if kind == "invoke" else "".join([str(c.content) async for c in model.astream("hi")])

    answers: list[Any] = []

    def program() -> None:
        answers.extend(asyncio.run(ask()) for _ in range(3))

    thread = threading.Thread(target=program)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert answers == ["hello"] * 3


async def test_plain_clients_keep_their_connection(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello")
    async with httpx.AsyncClient(base_url=h.gateway.base_url) as client:
        assert "connection" not in (await client.get("/models")).headers
        assert (await client.get("/models", headers={"x-stainless-async": "async:asyncio"})).headers["connection"] == "close"


@pytest.mark.parametrize("address", ["", "http://127.0.0.1:9/v1", "http://no-such-host.invalid/v1"])
async def test_an_attempt_ends_without_its_gateway_too(address: str) -> None:
    await asyncio.wait_for(end_calls(LLM("model", address, "key")), 5)
