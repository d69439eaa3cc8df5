"""A store's server bounds its load, its bodies and its connections, and its clients wait without losing a record."""

from __future__ import annotations

import asyncio
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from test_store_http import TOKEN, Served

from acknowledged import line
from agentlightning.errors import StoreError
from agentlightning.gateway.limits import RESERVED
from agentlightning.stores import http_client, http_load
from agentlightning.stores.common import open_store
from agentlightning.stores.http_client import StoreClient
from agentlightning.stores.http_load import MAX_BODY, MAX_REQUESTS
from agentlightning.stores.serialization import decode
from agentlightning.telemetry.store_app import store_app
from agentlightning.testing.store import rollouts
from agentlightning.types import Span

HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`agl store serve` in a process of its own."""
    command = [sys.executable, "-m", "agentlightning", "store", "serve", str(tmp_path / "agl.db"), "--port", "0", "--token", TOKEN]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield server
    server.terminate()
    server.wait()


def url_of(server: subprocess.Popen[str]) -> str:
    return line(server)[1].replace(f"{TOKEN}@", "")


def unfinished(url: str, size: int) -> socket.socket:
    """A connection with the head of a request and none of its body."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /store/v1/add HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {size}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


async def until_full(url: str) -> httpx.Response:
    """The first answer that refuses a request."""
    async with asyncio.timeout(10), httpx.AsyncClient(base_url=f"{url}/store/v1", headers=HEADERS) as bare:
        while (answer := await bare.post("/policies", content=b"not a call")).status_code != 503:
            await asyncio.sleep(0.01)
        return answer


@pytest.mark.parametrize(("count", "size"), [(2, MAX_BODY), (MAX_REQUESTS, 10)])
async def test_a_full_server_says_so_and_its_clients_go_on_when_there_is_room(
    count: int, size: int, server: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http_client, "OUTAGE", 0.5)
    url = url_of(server)
    client = StoreClient(url, TOKEN, patience=0.5)  # a full server is no outage
    await client.add(rollouts(1))
    [(_, attempt)] = await client.claim("w", lease=600)
    waiting = [asyncio.create_task(client.wait(2, timeout=30)) for _ in range(MAX_REQUESTS + 1)]  # long polls are no load
    await asyncio.sleep(0.5)
    spans = [Span(attempt_id=attempt.id, kind="tool", name=str(n)) for n in range(3)]
    await client.record(spans[:1])
    with ExitStack() as hold:
        for _ in range(count):
            hold.enter_context(unfinished(url, size))
        answer = await until_full(url)
        assert answer.headers["Retry-After"] == "1"
        assert "takes no more" in decode(answer.content, tuple[str, str])[1]
        recording = [asyncio.create_task(client.record([each])) for each in spans[1:]]
        assert await client.wait(0, timeout=5) == 2
        async with asyncio.timeout(20):
            while "is full" not in caplog.text:  # told at the second refusal, after a pause of 1 to 1.5 s
                await asyncio.sleep(0.05)
        assert not any(record.done() for record in recording)
    await asyncio.wait_for(asyncio.gather(*recording), 10)
    assert (await client.records(attempt.id)).spans == tuple(spans)
    await client.finish(attempt.id, "succeeded")
    assert set(await asyncio.wait_for(asyncio.gather(*waiting), 10)) == {3}
    await client.close()


async def test_a_body_over_the_limit_is_refused_with_the_limit(server: subprocess.Popen[str]) -> None:
    url = url_of(server)
    client = StoreClient(url, TOKEN)
    await client.add(rollouts(1))
    [(_, attempt)] = await client.claim("w", lease=600)
    with pytest.raises(StoreError, match=r"The call `record` has more than 64 MB. Split it into several."):
        await client.record([Span(attempt_id=attempt.id, kind="tool", name="t", attributes={"x": "y" * MAX_BODY})])

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(66):
            yield b"x" * 2**20

    async with httpx.AsyncClient(base_url=f"{url}/store/v1", headers=HEADERS) as bare:
        assert (await bare.post("/record", content=parts())).status_code == 413  # without its length in the head
    await client.record([Span(attempt_id=attempt.id, kind="tool", name="t")])
    await client.close()


async def test_a_request_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_load, "STALL", 0.3)
    with Served(store_app(open_store("memory:"), TOKEN)) as served, ExitStack() as hold:
        stalled = [hold.enter_context(unfinished(served.url, MAX_BODY)) for _ in range(2)]
        await until_full(served.url)
        answers = await asyncio.gather(*(asyncio.to_thread(connection.recv, 100) for connection in stalled))
        assert all(answer.startswith(b"HTTP/1.1 408") for answer in answers)
        client = StoreClient(served.url, TOKEN)
        await client.add(rollouts(1))
        await client.close()


async def test_a_server_keeps_a_bounded_number_of_connections_open(server: subprocess.Popen[str]) -> None:
    url = url_of(server)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (RESERVED + 20, hard))
    client = StoreClient(url, TOKEN)
    host, port = url.removeprefix("http://").split(":")
    with ExitStack() as hold:
        idle = [hold.enter_context(socket.create_connection((host, int(port)))) for _ in range(40)]
        for connection in idle[20:]:
            connection.settimeout(10)
            assert connection.recv(100).startswith(b"HTTP/1.1 503")
        adding = asyncio.create_task(client.add(rollouts(1)))
        await asyncio.sleep(0.3)
        assert not adding.done()
    await asyncio.wait_for(adding, 10)
    assert len((await client.list())[0]) == 1
    await client.close()
