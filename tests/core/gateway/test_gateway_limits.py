"""Limits of the gateway: requests of one key, and open connections."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import openai
import pytest
from tests.gateway_house import House, user

from agentlightning.gateway import limits


def small(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    for name, value in values.items():
        monkeypatch.setattr(limits, name, value)


async def statuses(h: House, key: str, count: int) -> list[int]:
    body = {"model": "scripted", "messages": [user("hi")]}
    async with httpx.AsyncClient(base_url=h.gateway.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
        answers = await asyncio.gather(*(client.post("/chat/completions", json=body) for _ in range(count)))
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)
    return sorted(answer.status_code for answer in answers)


async def test_a_key_that_sends_too_many_requests_is_refused_for_a_while(
    house: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small(monkeypatch, RATE=10.0, BURST=5.0)
    h = await house(lambda prompt, sampling: "hello")
    flood, quiet = await h.attempt(), await h.attempt()
    got = await statuses(h, flood.key, 20)
    assert (got[:5], got[-10:]) == ([200] * 5, [429] * 10)
    assert await statuses(h, quiet.key, 3) == [200] * 3
    assert caplog.text.count("too many requests") == 1
    calls = (await h.records(flood)).calls
    assert {call.status for call in calls} == {"completed"}
    assert len(calls) == got.count(200)
    await asyncio.sleep(0.3)
    assert await statuses(h, flood.key, 2) == [200, 200]


async def test_the_official_client_waits_and_gets_its_answer(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, RATE=2.0, BURST=1.0)
    h = await house(lambda prompt, sampling: "hello")
    client: openai.AsyncOpenAI = h.client(await h.attempt(), max_retries=3)
    for _ in range(2):
        answer = await client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content == "hello"


async def test_a_key_has_a_limited_number_of_running_requests(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, RUNNING=4)
    h = await house(lambda prompt, sampling: "hello", delay=0.2)
    assert await statuses(h, (await h.attempt()).key, 10) == [200] * 4 + [429] * 6


async def test_the_servers_own_token_has_no_limit(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, BURST=2.0, RATE=0.0)
    h = await house(lambda prompt, sampling: "hello", options={"token": "secret"})
    assert await statuses(h, "secret", 6) == [200] * 6


async def test_other_keys_beside_an_attempts_key_change_nothing(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, BURST=2.0, RATE=0.0)
    h = await house(lambda prompt, sampling: "hello")
    body = {"model": "scripted", "messages": [user("hi")]}

    async def status(bearer: str, key: str) -> int:
        headers = {"Authorization": f"Bearer {bearer}", "X-AGL-Key": key}
        async with httpx.AsyncClient(base_url=h.gateway.base_url, headers=headers, timeout=30) as client:
            return (await client.post("/chat/completions", json=body)).status_code

    attempts = [await h.attempt() for _ in range(4)]
    assert [await status("EMPTY", attempt.key) for attempt in attempts] == [200] * 4
    flood = (await h.attempt()).key
    assert [await status(f"{prefix}-{turn}", flood) for prefix in ("junk", "agl-junk") for turn in range(2)] == [200, 200, 429, 429]


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


async def test_a_connection_too_many_is_closed_and_the_others_go_on(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning.gateway.listener.most_connections", lambda: 5)
    h = await house(lambda prompt, sampling: "hello")
    port = int(h.gateway.base_url.split(":")[2].split("/")[0])
    held = [connected(port) for _ in range(4)]
    await asyncio.sleep(0.1)
    assert await statuses(h, (await h.attempt()).key, 1) == [200]
    held += [connected(port)]
    refused = await asyncio.to_thread(connected, port)
    answer = await asyncio.to_thread(refused.recv, 1000)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in answer
    assert await asyncio.to_thread(refused.recv, 1000) == b""
    for connection in (*held, refused):
        connection.close()
    await asyncio.sleep(0.1)
    assert await statuses(h, (await h.attempt()).key, 1) == [200]


def test_connections_leave_files_for_the_store() -> None:
    assert 16 <= limits.most_connections() <= limits.MOST
