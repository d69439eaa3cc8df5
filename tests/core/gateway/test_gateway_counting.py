"""Every request of a known attempt ends as one call, whatever became of it."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import httpx
import openai
import pytest

from agentlightning.errors import ContextOverflow, EngineError, StoreError
from agentlightning.types import Attempt, Sampling
from gateway_house import House, eventually, user

HI = [user("hi")]
LONG = "a long reply that takes its time"


def failing(error: Exception, times: int) -> Any:
    """A script that fails so many times, then replies."""
    left = [error] * times

    def script(prompt: str, sampling: Sampling) -> str:
        if left:
            raise left.pop()
        return "fine"

    return script


async def outcomes(h: House, attempt: Attempt) -> list[str]:
    return [call.status for call in (await h.records(attempt)).calls]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_its_generation(house: Any, stream: bool) -> None:
    h = await house(lambda prompt, sampling: LONG, chunk=1, delay=0.03)
    attempt = await h.attempt()
    create = h.client(attempt).chat.completions.create(model="scripted", messages=HI, stream=stream, n=2)
    if stream:
        answer = await create
        async for chunk in answer:
            if chunk.choices[0].delta.content:
                break
        await answer.close()
    else:
        task = asyncio.create_task(create)
        await eventually(lambda: _asked(h, 2))
        task.cancel()

    async def recorded() -> bool:
        return bool((await h.records(attempt)).calls)

    await eventually(recorded)
    records = await h.records(attempt)
    assert [(c.status, c.choices) for c in records.calls] == [("cancelled", 2)]
    assert [asked.status for asked in h.engine.asked] == ["aborted", "aborted"]
    for completion in records.completions:
        assert completion.finish_reason == "cancelled"
        assert 0 < len(completion.response_ids) < len(LONG)
        assert LONG.startswith(h.text(completion.response_ids))


async def test_a_client_that_goes_away_before_the_engine_is_asked_is_recorded_at_once(house: Any) -> None:
    waits, goes_on = threading.Event(), threading.Event()

    def demonstrate(task: Any, messages: Any, tools: Any) -> None:
        waits.set()
        goes_on.wait(30)

    h = await house(lambda prompt, sampling: "hello", options={"demonstrate": demonstrate})
    attempt = await h.attempt()
    task = asyncio.create_task(h.client(attempt).chat.completions.create(model="scripted", messages=HI))
    await asyncio.to_thread(waits.wait, 10)
    task.cancel()

    async def recorded() -> bool:
        return bool((await h.records(attempt)).calls)

    try:
        await eventually(recorded)
    finally:
        goes_on.set()
    [call] = (await h.records(attempt)).calls
    assert (call.status, call.detail, call.context) == ("cancelled", "the client went away", "first")
    assert h.engine.asked == []


async def _asked(h: House, tokens: int) -> bool:
    return bool(h.engine.asked) and h.engine.asked[-1].sent >= tokens


async def test_a_retry_after_an_error_supersedes_the_failed_call(house: Any) -> None:
    h = await house(failing(EngineError("out of memory"), 2))
    attempt = await h.attempt()
    answer = await h.client(attempt, max_retries=3).chat.completions.create(model="scripted", messages=HI)
    assert answer.choices[0].message.content == "fine"
    calls = (await h.records(attempt)).calls
    assert [c.status for c in calls] == ["error", "error", "completed"]
    assert "out of memory" in str(calls[0].detail)
    assert [c.supersedes for c in calls] == [None, calls[0].id, calls[1].id]


async def test_a_retry_after_a_timeout_supersedes_the_cancelled_call(house: Any) -> None:
    h = await house(lambda prompt, sampling: "x", delay=0.8)
    attempt = await h.attempt()
    await h.client(attempt).models.list()
    await asyncio.to_thread(lambda: h.engine.tokenizer)

    async def soon() -> None:
        await asyncio.sleep(1.0)
        h.engine._delay = 0.0

    easing = asyncio.create_task(soon())
    client = h.client(attempt, max_retries=5, timeout=0.5)
    await client.chat.completions.create(model="scripted", messages=HI)
    await easing
    calls = (await h.records(attempt)).calls
    assert {c.status for c in calls[:-1]} == {"cancelled"}
    assert calls[-1].status == "completed"
    assert [c.supersedes for c in calls] == [None, *(c.id for c in calls[:-1])]


async def test_the_same_question_again_is_no_retry(house: Any) -> None:
    h = await house(lambda prompt, sampling: "x")
    attempt = await h.attempt()
    client = h.client(attempt)
    for headers in ({}, {}, {"x-stainless-retry-count": "1"}):  # the last: a retry of an answer that was delivered
        await client.chat.completions.create(model="scripted", messages=HI, extra_headers=headers)
    assert [c.supersedes for c in (await h.records(attempt)).calls] == [None] * 3


async def test_an_error_in_the_middle_of_a_stream_is_told_and_counted(house: Any) -> None:
    h = await house(lambda prompt, sampling: LONG, chunk=2)
    attempt = await h.attempt()
    generate = h.engine.generate

    async def breaks(prompt_ids: Any, sampling: Sampling, **rollout: Any) -> Any:
        count = 0
        async for chunk in generate(prompt_ids, sampling, **rollout):
            count += 1
            if count == 3:
                raise EngineError("the GPU fell off")
            yield chunk

    h.engine.generate = breaks
    with pytest.raises(openai.APIError, match="fell off"):
        async for _ in await h.client(attempt).chat.completions.create(model="scripted", messages=HI, stream=True):
            pass
    records = await h.records(attempt)
    assert [c.status for c in records.calls] == ["error"]
    assert [(len(c.response_ids), c.finish_reason) for c in records.completions] == [(4, "error")]


async def test_an_overflow_that_the_engine_finds_is_a_400(house: Any) -> None:
    h = await house(failing(ContextOverflow("the prompt has 9 tokens and the context is 8"), 1))
    attempt = await h.attempt()
    with pytest.raises(openai.BadRequestError, match="9 tokens") as error:
        await h.client(attempt).chat.completions.create(model="scripted", messages=HI)
    assert error.value.code == "context_length_exceeded"
    assert await outcomes(h, attempt) == ["refused"]


async def test_a_store_that_fails_is_told_and_nothing_is_answered_unrecorded(house: Any) -> None:
    h = await house(lambda prompt, sampling: "x")
    attempt = await h.attempt()
    record = h.store.record

    async def full(records: Any) -> None:
        raise StoreError("the disk is full")

    h.store.record = full
    with pytest.raises(openai.InternalServerError, match="disk is full"):
        await h.client(attempt).chat.completions.create(model="scripted", messages=HI)
    h.store.record = record
    await h.client(attempt).chat.completions.create(model="scripted", messages=HI)
    assert await outcomes(h, attempt) == ["completed"]


async def test_a_stopping_gateway_records_what_is_under_way(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning.gateway.app_server.SHUTDOWN", 1)
    h = await house(lambda prompt, sampling: LONG, chunk=1, delay=1.0)
    attempt = await h.attempt()
    task = asyncio.create_task(h.client(attempt).chat.completions.create(model="scripted", messages=HI))

    async def under_way() -> bool:
        return bool(h.engine.asked)

    await eventually(under_way)
    await h.gateway.stop()
    with pytest.raises(openai.APIError):
        await task
    assert await outcomes(h, attempt) == ["cancelled"]


async def test_a_call_that_is_cancelled_while_it_is_recorded_is_recorded_once(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning.gateway.app_server.SHUTDOWN", 0.1)
    h = await house(lambda prompt, sampling: "x")
    attempt = await h.attempt()
    record, begun = h.store.record, asyncio.Event()
    loop = asyncio.get_running_loop()

    async def slow(records: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        await asyncio.sleep(0.6)
        await record(records)

    h.store.record = slow
    task = asyncio.create_task(h.client(attempt).chat.completions.create(model="scripted", messages=HI, n=2))
    await begun.wait()
    await h.gateway.stop()
    with pytest.raises(openai.APIError):
        await task
    records = await h.records(attempt)
    assert [(call.status, call.choices) for call in records.calls] == [("completed", 2)]
    assert [completion.choice for completion in records.completions] == [0, 1]


async def test_the_sums_agree_over_many_attempts_at_once(house: Any) -> None:
    h = await house(lambda prompt, sampling: LONG, chunk=2, delay=0.002)
    attempts = [await h.attempt() for _ in range(8)]
    sent: Counter[str] = Counter()

    async def one(attempt: Attempt, kind: int) -> None:
        client = h.client(attempt)
        sent[attempt.id] += 1
        try:
            if kind == 0:
                await client.chat.completions.create(model="scripted", messages=HI, n=2)
            elif kind == 1:
                await client.chat.completions.create(model="nope", messages=HI)
            elif kind == 2:
                stream = await client.chat.completions.create(model="scripted", messages=HI, stream=True)
                async for _ in stream:
                    await stream.close()
                    break
            else:
                await client.chat.completions.create(model="scripted", messages=HI, functions=[{"name": "f"}])
        except openai.APIStatusError:
            pass

    await asyncio.gather(*(one(attempt, kind) for attempt in attempts for kind in range(4)))

    async def all_recorded() -> bool:
        return sum([len((await h.records(a)).calls) for a in attempts]) == sent.total()

    await eventually(all_recorded)
    for attempt in attempts:
        records = await h.records(attempt)
        assert sorted(c.index for c in records.calls) == list(range(4))
        assert Counter(c.status for c in records.calls) == {"completed": 1, "refused": 2, "cancelled": 1}
        assert sum(c.choices for c in records.calls) == len(records.completions) == 3


async def test_a_first_rush_of_calls_loads_the_attempt_once_and_numbers_them_all(house: Any) -> None:
    h = await house(lambda prompt, sampling: "x")
    attempt = await h.attempt()
    reads = 0
    records = h.store.records

    async def counted(attempt_id: str) -> Any:
        nonlocal reads
        reads += 1
        await asyncio.sleep(0.05)
        return await records(attempt_id)

    h.store.records = counted
    client = h.client(attempt)
    await asyncio.gather(*(client.chat.completions.create(model="scripted", messages=HI) for _ in range(8)))
    assert reads == 1
    assert sorted(c.index for c in (await records(attempt.id)).calls) == list(range(8))


async def test_a_body_that_never_ends_is_no_request(house: Any) -> None:
    h = await house(lambda prompt, sampling: "x")
    attempt = await h.attempt()

    async def half() -> Any:
        yield b'{"model": "scripted"'
        raise httpx.WriteError("gone")

    async with httpx.AsyncClient(base_url=h.gateway.base_url, headers={"Authorization": f"Bearer {attempt.key}"}) as client:
        with pytest.raises(httpx.WriteError):
            await client.post("/chat/completions", content=half())
    await asyncio.sleep(0.1)
    assert await outcomes(h, attempt) == []
