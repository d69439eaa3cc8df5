"""Requests that no gateway can read: each is a 4xx that says why, and none costs more than it must."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from tests.gateway_house import CALCULATOR, House, user

from agentlightning.gateway import listener

PATHS = ("/chat/completions", "/responses", "/completions", "/messages", "/messages/count_tokens", "/reward")
BODIES: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": [user("hi")]},
    "/responses": {"input": "hi"},
    "/completions": {"prompt": "hi"},
    "/messages": {"messages": [user("hi")], "max_tokens": 5},
}


def tool(path: str, parameters: Any) -> dict[str, Any]:
    """A tool in the form of a path."""
    if path == "/messages":
        return {"name": "f", "input_schema": parameters}
    function = {"name": "f", "parameters": parameters}
    return {"type": "function", **function} if path == "/responses" else {"type": "function", "function": function}


async def post(h: House, path: str, key: str, **content: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=h.gateway.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        return await client.post(path, **content)


@pytest.fixture
async def gateway(house: Any) -> House:
    return await house(lambda prompt, sampling: "x", options={"token": "secret"})


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("opening", [b"", b'{"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "extra": '])
@pytest.mark.parametrize("depth", [150, 1100, 100_000])
async def test_json_that_is_nested_too_deeply_is_refused(gateway: House, path: str, opening: bytes, depth: int) -> None:
    attempt = await gateway.attempt()
    body = opening + b"[" * depth + b"]" * depth + (b"}" if opening else b"")
    for key in (attempt.key, "secret"):
        if path == "/reward" and key == "secret":
            continue
        answer = await post(gateway, path, key, content=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]
        if opening and depth == 150 and path not in ("/reward", "/messages/count_tokens", "/messages"):
            assert answer.json()["error"]["param"] == "extra"
    calls = (await gateway.records(attempt)).calls
    assert [call.status for call in calls] == ([] if path in ("/reward", "/messages/count_tokens") else ["refused"])


@pytest.mark.parametrize("path", PATHS[:5])
async def test_invalid_utf_8_is_refused_with_every_key(gateway: House, path: str) -> None:
    attempt = await gateway.attempt()
    for key in (attempt.key, "secret"):
        answer = await post(gateway, path, key, content=b'{"model": "scripted", "messages": [{"role": "user", "content": "\xff"}]}')
        assert (answer.status_code, "not JSON" in answer.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize("path", ["/chat/completions", "/responses", "/messages"])
@pytest.mark.parametrize("properties", [1e308, -1, "text", True, [None], {"a": 5}, {"a": {"type": 3}}, {"a": {"items": "x"}}])
async def test_a_tool_schema_of_another_shape_is_refused_by_the_name_of_its_part(gateway: House, path: str, properties: Any) -> None:
    attempt = await gateway.attempt()
    body = {"model": "scripted", **BODIES[path], "tools": [tool(path, {"type": "object", "properties": properties})]}
    answer = await post(gateway, path, attempt.key, json=body)
    assert answer.status_code == 400, answer.text
    field = {"/chat/completions": "function.parameters", "/responses": "parameters", "/messages": "input_schema"}[path]
    assert answer.json()["error"]["message"].startswith(f"tools[0].{field}.properties")
    if path != "/messages":
        assert answer.json()["error"]["param"].startswith(f"tools[0].{field}.properties")


async def test_a_tool_schema_may_hold_true_false_null_and_unknown_keywords(gateway: House) -> None:
    schema = {"type": ["object", "null"], "properties": {"a": True, "b": {"type": "string", "description": None, "x-own": [1]}}}
    schema |= {"required": None, "additionalProperties": False, "items": [{"type": "string"}], "anyOf": [{}, False]}
    attempt = await gateway.attempt()
    answer = await post(gateway, "/chat/completions", attempt.key, json={"model": "scripted", **BODIES["/chat/completions"], "tools": [
        CALCULATOR, tool("/chat/completions", schema)]})  # fmt: skip
    assert answer.status_code == 200, answer.text


async def test_arguments_of_a_tool_call_that_are_nested_too_deeply_are_refused(gateway: House) -> None:
    attempt = await gateway.attempt()
    for depth in (150, 100_000):
        call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[" * depth + "]" * depth}}
        messages = [user("hi"), {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "a", "content": "1"}]
        answer = await post(gateway, "/chat/completions", attempt.key, json={"model": "scripted", "messages": messages})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "messages[1].tool_calls[0].function.arguments"


async def ask(h: House, head: str, *chunks: bytes) -> bytes:
    """The answer to the beginning of a request, whose end is never sent."""
    host, port = h.gateway.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n{head}\r\n".encode())
    for chunk in chunks:
        writer.write(chunk)
    try:
        return await asyncio.wait_for(reader.readuntil(b"}}"), 5)
    finally:
        writer.close()


async def test_a_wrong_key_is_refused_before_the_body_comes(gateway: House) -> None:
    answer = await ask(gateway, "authorization: Bearer wrong\r\ncontent-length: 300000000\r\n")
    assert answer.startswith(b"HTTP/1.1 401")


async def test_a_body_over_the_limit_is_refused_before_it_comes_and_counted(house: Any) -> None:
    h = await house(["x"], options={"max_body": 1000})
    attempt = await h.attempt()
    answer = await ask(h, f"authorization: Bearer {attempt.key}\r\ncontent-length: 1001\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"1000 bytes" in answer
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    answer = await ask(h, f"authorization: Bearer {attempt.key}\r\ntransfer-encoding: chunked\r\n", chunk)
    assert answer.startswith(b"HTTP/1.1 413")
    calls = (await h.records(attempt)).calls
    assert [(call.status, "1000 bytes" in (call.detail or "")) for call in calls] == [("refused", True)] * 2
    for path in ("/messages/count_tokens", "/reward"):
        assert (await post(h, path, attempt.key, content=b"x" * 1001)).status_code == 413


async def test_headers_that_never_end_cost_a_connection_for_a_limited_time(gateway: House, monkeypatch: Any) -> None:
    monkeypatch.setattr(listener, "HEADER_TIMEOUT", 0.3)
    host, port = gateway.gateway.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    for start in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-half: "):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(start)
        assert await asyncio.wait_for(reader.read(), 5) == b""  # closed
        writer.close()


async def test_headers_beyond_all_measure_close_the_connection(gateway: House) -> None:
    host, port = gateway.gateway.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n")
    closed = asyncio.create_task(reader.read())
    for _ in range(100):
        writer.write(b"x-more: " + b"a" * 8000 + b"\r\n")
        await asyncio.sleep(0.01)
        if closed.done():
            break
    assert closed.done()
    writer.close()


async def test_a_slow_reply_does_not_count_as_slow_headers(house: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(listener, "HEADER_TIMEOUT", 0.1)
    h = await house(lambda prompt, sampling: "x", delay=0.5)
    attempt = await h.attempt()
    client = h.client(attempt)
    for _ in range(2):
        answer = await client.chat.completions.create(model="scripted", messages=[user("hi")])
        assert answer.choices[0].message.content == "x"


@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example", 403), ("evil.example:80", 403), ("127.0.0.1.evil.example", 403), ("localhost:1", 200), ("[::1]:9", 200),
     ("host.docker.internal", 200), ("agent.localhost", 200), ("LOCALHOST", 200)],
)  # fmt: skip
async def test_a_loopback_address_answers_to_local_names_alone(gateway: House, host: str, status: int) -> None:
    attempt = await gateway.attempt()
    async with httpx.AsyncClient(base_url=gateway.gateway.base_url, headers={"Host": host}, timeout=60) as client:
        assert (await client.get("/models")).status_code == status
        body = {"model": "scripted", **BODIES["/chat/completions"]}
        assert (await client.post("/chat/completions", json=body, headers={"x-api-key": attempt.key})).status_code == status
