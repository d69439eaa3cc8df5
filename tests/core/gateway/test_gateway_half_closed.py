"""Clients that close their sending side after a request, and clients that go away."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.gateway_house import House, eventually

from agentlightning.types import Attempt

CONTINUE = "HTTP/1.1 100 Continue\r\n\r\n"
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(house: House, attempt: Attempt, body: dict[str, Any], missing: int = 0) -> Connection:
    """A connection that has sent one request, without the last `missing` bytes of its body."""
    content = json.dumps(body | {"model": house.llm(attempt).model}).encode()
    host, port = house.gateway.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    headers = f"Host: {host}\r\nAuthorization: Bearer {attempt.key}\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{headers}".encode() + content[: len(content) - missing])
    await writer.drain()
    return reader, writer


async def statuses(house: House, attempt: Attempt) -> list[str]:
    return [call.status for call in (await house.records(attempt)).calls]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_closes_its_sending_side_gets_its_answer(house: Any, stream: bool) -> None:
    h = await house(lambda prompt, sampling: "hello there", delay=0.05)
    attempt = await h.attempt()
    reader, writer = await connect(h, attempt, HELLO | {"stream": stream})
    writer.write_eof()
    answer = (await asyncio.wait_for(reader.read(), 20)).decode()
    writer.close()
    while answer.startswith(CONTINUE):  # interim responses, which every client ignores
        answer = answer.removeprefix(CONTINUE)
    assert answer.startswith("HTTP/1.1 200 OK")
    assert ("data: [DONE]" in answer) if stream else json.loads(answer.partition("\r\n\r\n")[2])["choices"]
    assert await statuses(h, attempt) == ["completed"]


@pytest.mark.parametrize("half_closed_before", [False, True])
async def test_a_client_that_goes_away_before_its_answer_is_cancelled(house: Any, half_closed_before: bool) -> None:
    h = await house(lambda prompt, sampling: "a long reply of many words " * 20, delay=0.5)
    attempt = await h.attempt()
    _, writer = await connect(h, attempt, HELLO)
    if half_closed_before:
        writer.write_eof()
        await asyncio.sleep(0.3)
    writer.close()

    async def is_cancelled() -> bool:
        return await statuses(h, attempt) == ["cancelled"]

    await eventually(is_cancelled)


async def test_a_client_that_closes_its_sending_side_within_its_request_gets_no_answer(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello there")
    attempt = await h.attempt()
    reader, writer = await connect(h, attempt, HELLO, missing=5)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    assert "completed" not in await statuses(h, attempt)
