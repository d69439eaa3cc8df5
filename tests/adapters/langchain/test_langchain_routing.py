"""Whose call is it: a module-level agent serves many rollouts, and no other address sees a key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from adapter_world import World
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_world import chat, question, serve
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI
from openai._base_client import BaseClient
from openai._models import FinalRequestOptions
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import agentlightning as agl
from agentlightning.capture.clients import clients
from agentlightning.capture.openai_patch import route
from agentlightning.stores.common import open_store
from agentlightning_langchain import LightningCallback, install, uninstall


@tool
def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


# Built before any gateway, as an agent is that somebody already has.
MODEL = ChatOpenAI(model="gpt-4o-mini", base_url="http://127.0.0.1:9/v1", api_key="secret", max_retries=0)
AGENT = create_agent(MODEL, [double], name="solver")
STREAMING = create_agent(MODEL.model_copy(update={"streaming": True}), [double], name="solver")


async def plain(number: int) -> None:
    await AGENT.ainvoke(question(number))


async def streamed(number: int) -> None:
    async for _ in STREAMING.astream(question(number), stream_mode="messages"):
        pass


async def blocking(number: int) -> None:
    await asyncio.to_thread(AGENT.invoke, question(number))


async def blocking_streamed(number: int) -> None:
    def run() -> None:
        for _ in STREAMING.stream(question(number), stream_mode="messages"):
            pass

    await asyncio.to_thread(run)


@pytest.mark.parametrize("run", [plain, streamed, blocking, blocking_streamed])
async def test_one_module_level_model_serves_eight_rollouts_at_once(world: World, run: Any) -> None:
    install(models=["gpt-4o-*"])

    async def rollout(number: int) -> None:
        async with world.rollout(number) as recorder:
            await asyncio.gather(run(number), run(number + 100))
            spans = await world.joined(recorder, 4)
            assert {span.agent for span in spans} == {"solver"}
        made = await world.trajectory(recorder, agents=["solver"])
        assert (made.task.input, made.calls) == (number, {"completed": 4})
        assert [t.trained for t in made.transitions] == [True] * 4

    await asyncio.gather(*(rollout(number) for number in range(8)))


@pytest.fixture
async def judge() -> AsyncIterator[tuple[str, list[Any]]]:
    """Another vendor: its address, and the headers it saw."""
    seen: list[Any] = []

    async def answer(request: Request) -> JSONResponse:
        seen.append((dict(request.headers), await request.json()))
        message = {"role": "assistant", "content": "fine"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 1,
                "model": "judge",
                "system_fingerprint": "fp_44709d6fcb",
                "choices": [choice],
            }
        )

    async with serve(Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])) as address:
        yield f"{address}/v1", seen


async def test_a_judge_at_another_address_is_left_alone_and_sees_no_key(
    world: World, judge: tuple[str, list[Any]], installed: None
) -> None:
    address, seen = judge
    async with world.rollout() as recorder:
        model = ChatOpenAI(model="judge", base_url=address, api_key="judge-key")
        await model.ainvoke("fine?")
        await asyncio.to_thread(model.invoke, "fine?")
        records = await world.records(recorder)
    assert records.calls == ()
    assert [span.call_id for span in records.spans] == [None, None]
    assert "another address" in records.spans[0].attributes["unjoined"]
    assert records.spans[0].attributes["output"]["content"] == "fine"
    for headers, body in seen:
        assert headers["authorization"] == "Bearer judge-key"
        assert body["model"] == "judge"
        assert recorder.attempt.key not in str(headers)
        assert not [name for name in headers if name.startswith("x-agl")]


async def test_a_bare_client_in_a_rollout_goes_to_its_gateway_and_its_call_is_nobodys_else(world: World, installed: None) -> None:
    messages: Any = [{"role": "user", "content": "question"}]
    client = OpenAI(base_url="http://127.0.0.1:9/v1", api_key="secret", max_retries=0)
    async with world.rollout() as recorder:
        await chat(recorder).ainvoke("question")
        await asyncio.to_thread(client.chat.completions.create, model=recorder.llm.model, messages=messages)
        other = AsyncOpenAI(base_url=recorder.llm.base_url, api_key="secret", max_retries=0)
        await other.chat.completions.create(model="any", messages=messages)
        records = await world.records(recorder)
    assert len(records.calls) == 3
    assert len([span for span in records.spans if span.kind == "llm"]) == 1


async def test_a_model_call_that_has_ended_claims_no_later_request(world: World, installed: None) -> None:
    messages: Any = [{"role": "user", "content": "question"}]
    async with world.rollout(0) as first:
        await chat(first).ainvoke("question")
        async with world.rollout(1) as second:
            client = AsyncOpenAI(base_url=second.llm.base_url, api_key=second.llm.api_key, max_retries=0)
            await client.chat.completions.create(model=second.llm.model, messages=messages)
            assert [len((await world.records(each)).calls) for each in (first, second)] == [1, 1]


async def test_a_callback_built_outside_serves_the_rollout_that_is_current(world: World) -> None:
    callback = LightningCallback()

    async def rollout(number: int) -> None:
        async with world.rollout(number) as recorder:
            await create_agent(chat(recorder), [double]).ainvoke(question(), {"callbacks": [callback]})
            await world.joined(recorder, 2)

    await asyncio.gather(*(rollout(number) for number in range(4)))


async def test_uninstalling_leaves_the_library_as_it_was(world: World) -> None:
    uninstall()
    for other in [*clients()._models]:  # a test before, in this process, may have installed another adapter
        clients().uninstall(other)
    before = BaseClient._build_request
    install()
    install(models=["a"])
    assert BaseClient._build_request is not before
    uninstall()
    assert BaseClient._build_request is before
    async with world.rollout() as recorder:
        await chat(recorder).ainvoke("question")
        records = await world.records(recorder)
    assert len(records.calls) == 1
    assert records.spans == ()


async def test_an_azure_client_goes_to_the_gateway_without_its_own_key(world: World) -> None:
    install(models=["gpt-4o-mini"])
    asked: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "question"}]}
    settings: Any = {"azure_endpoint": "http://127.0.0.1:9", "api_version": "2024-06-01", "max_retries": 0}
    deployed = AzureOpenAI(api_key="secret", azure_deployment="gpt-4o-mini", **settings)
    unnamed = AsyncAzureOpenAI(api_key="secret", **settings)
    async with world.rollout() as recorder:
        await asyncio.to_thread(deployed.chat.completions.create, **asked)
        await unnamed.chat.completions.create(**asked)
        assert len((await world.records(recorder)).calls) == 2
        options = FinalRequestOptions.construct(method="post", url="/chat/completions", json_data=asked, headers={"API-Key": "secret"})
        routed = route(deployed, options, ["gpt-4o-mini"])
    assert "secret" not in str(routed.headers)  # whatever its spelling: older clients merge headers by their exact names
    assert routed.headers["Authorization"] == f"Bearer {recorder.attempt.key}"


async def test_a_module_level_agent_in_a_bare_thread_goes_where_its_callback_was_made(world: World) -> None:
    install(models=["gpt-4o-mini"])

    async def rollout(number: int) -> None:
        async with world.rollout(number) as recorder:
            callback = LightningCallback()
            with ThreadPoolExecutor(2) as pool:
                done = [pool.submit(AGENT.invoke, question(i), {"callbacks": [callback]}) for i in range(2)]
                await asyncio.gather(*map(asyncio.wrap_future, done))
            await world.joined(recorder, 4)

    await asyncio.gather(*(rollout(number) for number in range(3)))


async def test_callbacks_of_two_rollouts_on_one_call_record_it_once(world: World) -> None:
    async with world.rollout(0) as first:
        one = LightningCallback()
        async with world.rollout(1) as second:
            two = LightningCallback()
            with ThreadPoolExecutor(1) as pool:
                await asyncio.wrap_future(pool.submit(chat(second).invoke, "question", {"callbacks": [one, two]}))
            await world.joined(second, 1)  # the job follows the rollout that submits it
        assert await world.spans(first) == []


def test_the_client_of_an_ended_event_loop_goes_on_in_the_next(world: World) -> None:
    """Two runs in one process, each with a loop of its own."""
    install(models=["gpt-4o-mini"])

    async def once() -> None:
        async with world.rollout() as recorder:
            await plain(0)
            await world.joined(recorder, 2)

    for _ in range(3):
        asyncio.run(once())


async def test_a_rollout_without_a_gateway_leaves_every_request_as_it_is(judge: tuple[str, list[Any]]) -> None:
    address, seen = judge
    install(models=["gpt-4o-*"])
    store = open_store("memory:")
    async with agl.rollout("task", store=store) as rollout:
        await ChatOpenAI(model="gpt-4o-mini", base_url=address, api_key="own-key", max_retries=0).ainvoke("question")
    [(headers, body)] = seen
    assert (headers["authorization"], body["model"]) == ("Bearer own-key", "gpt-4o-mini")
    assert not [name for name in headers if name.startswith("x-agl")]
    _, [records] = await store.read(rollout.id)
    assert records.calls == ()
    assert "no gateway" in records.spans[0].attributes["unjoined"]
