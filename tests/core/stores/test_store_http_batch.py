"""Writes that wait for a request travel together in the next one, and each has its own answer."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from test_store_http import TOKEN, LossyProxy, Served

from acknowledged import check_acknowledged, line, start
from agentlightning.errors import NotFound, StoreError, WireError
from agentlightning.stores import http_batch
from agentlightning.stores.common import open_store
from agentlightning.stores.http_client import StoreClient
from agentlightning.telemetry.store_app import store_app
from agentlightning.testing.store import rollouts
from agentlightning.types import Attempt, Span
from agentlightning_sqlite.store import SQLiteStore

LEASE = 600.0


def counting(app: Any, requests: Counter[str]) -> Any:
    """The app, and the number of requests to each path."""

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        requests[scope["path"].rpartition("/")[2]] += 1
        await app(scope, receive, send)

    return counted


def span(attempt_id: str, name: str = "calculator", text: Any = "") -> Span:
    return Span(attempt_id=attempt_id, kind="tool", name=name, attributes={"x": text})


async def claimed(client: StoreClient, count: int) -> list[Attempt]:
    await client.add(rollouts(count))
    return [attempt for _, attempt in await client.claim("w", lease=LEASE, limit=count)]


class Slow(SQLiteStore):
    async def record(self, records: Any) -> None:
        await asyncio.sleep(0.1)
        await super().record(records)


async def test_a_lone_record_is_sent_at_once_and_those_that_come_meanwhile_together_in_their_order() -> None:
    requests, store = Counter[str](), Slow()
    with Served(counting(store_app(store, TOKEN), requests)) as server:
        client = StoreClient(server.url, TOKEN)
        one, two = await claimed(client, 2)
        requests.clear()
        calls: list[asyncio.Task[None]] = []
        for n in range(20):
            calls.append(asyncio.create_task(client.record([span((one, two)[n % 2].id, name=str(n))])))
            await asyncio.sleep(0.001)
        await asyncio.gather(*calls)
        assert requests == {"record": 1, "calls": 1}
        for remainder, attempt in enumerate((one, two)):
            assert [int(each.name) for each in (await store.records(attempt.id)).spans] == [*range(remainder, 20, 2)]
        await client.close()


async def test_each_call_of_a_request_succeeds_or_fails_alone() -> None:
    with Served(store_app(open_store("memory:"), TOKEN)) as server:
        client = StoreClient(server.url, TOKEN)
        (attempt,) = await claimed(client, 1)
        good, also_good = span(attempt.id), span(attempt.id)
        answers = await asyncio.gather(
            client.heartbeat(attempt.id, lease=LEASE),
            client.record([good]),
            client.record([span("nobody")]),
            client.record([span(attempt.id, text=object())]),
            client.record([also_good]),
            client.claim("w", lease=LEASE),
            client.heartbeat(attempt.id, lease=-1),
            client.finish(attempt.id, "succeeded"),
            return_exceptions=True,
        )
        assert [type(answer) for answer in answers[:5]] == [type(None), type(None), NotFound, WireError, type(None)]
        assert answers[5] == []
        assert isinstance(answers[6], StoreError)
        assert not isinstance(answers[7], BaseException)
        assert (await client.records(attempt.id)).spans == (good, also_good)
        await client.close()


async def test_a_cancelled_caller_disturbs_nobody() -> None:
    with Served(store_app(open_store("memory:"), TOKEN)) as server:
        client = StoreClient(server.url, TOKEN)
        (attempt,) = await claimed(client, 1)
        calls = [asyncio.ensure_future(client.record([span(attempt.id, name=str(n))])) for n in range(4)]
        await asyncio.sleep(0)
        calls[2].cancel()  # waits
        await asyncio.sleep(0.001)
        calls[0].cancel()  # on its way
        await asyncio.gather(calls[1], calls[3])
        assert [each.name for each in (await client.records(attempt.id)).spans] == ["0", "1", "3"]
        await client.close()


async def test_a_request_whose_answer_is_lost_is_repeated_and_takes_effect_once() -> None:
    memory = open_store("memory:")
    with Served(store_app(memory, TOKEN)) as server:
        proxy = await LossyProxy.start(server.port)
        client = StoreClient(f"http://127.0.0.1:{proxy.port}", TOKEN)
        one, two = await claimed(client, 2)
        await client.add(added := rollouts(3))
        proxy.lose = True
        _, begun, state, cancelled = await asyncio.gather(
            client.record([span(one.id)]),
            client.claim("w", lease=LEASE),
            client.finish(one.id, "failed", retry=True),
            client.cancel([two.rollout_id, added[2].id]),
        )
        assert proxy.lost == 1
        assert (cancelled, state.status) == (2, "queued")
        assert len(begun) == 1
        statuses = Counter(state.status for state in (await memory.list())[0])
        assert statuses == {"queued": 2, "running": 1, "cancelled": 2}
        assert len((await memory.records(one.id)).spans) == 1
        await client.close()
        await proxy.stop()


async def test_one_request_holds_a_limited_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_batch, "MAX_BYTES", 10_000)
    requests = Counter[str]()
    with Served(counting(store_app(open_store("memory:"), TOKEN), requests)) as server:
        client = StoreClient(server.url, TOKEN)
        (attempt,) = await claimed(client, 1)
        requests.clear()
        sizes = [10, 4000, 4000, 4000, 20_000, 10]
        await asyncio.gather(*(client.record([span(attempt.id, text="y" * size)]) for size in sizes))
        assert requests == {"calls": 1, "record": 3}  # 10 + 4000 + 4000; 4000; 20,000; 10
        spans = (await client.records(attempt.id)).spans
        assert [len(str(each.attributes["x"])) for each in spans] == sizes
        await client.close()


async def test_a_server_of_another_kind_is_named_to_every_caller() -> None:
    async def hello(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"nginx"})

    with Served(hello) as server:
        client = StoreClient(server.url, TOKEN)
        answers = await asyncio.gather(*(client.add([]) for _ in range(4)), return_exceptions=True)
        assert all("is not a store" in str(answer) for answer in answers)
        await client.close()


def serve(path: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "agentlightning", "store", "serve", str(path), "--port", str(port), "--token", TOKEN]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while "store" not in line(server):
        assert server.poll() is None
    return server


async def test_what_was_acknowledged_over_http_survives_a_killed_server(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    server = serve(tmp_path / "agl.db", port)
    writers = [start("write", f"http://{TOKEN}@127.0.0.1:{port}", f"w{n}") for n in range(2)]
    acknowledged: defaultdict[str, list[list[str]]] = defaultdict(list)

    def read(writer: subprocess.Popen[str]) -> None:
        while words := line(writer):
            acknowledged[words[0]].append(words[1:])

    readers = [threading.Thread(target=read, args=(writer,)) for writer in writers]
    for reader in readers:
        reader.start()
    try:
        for number in (1, 2, 3):
            until = 30 * number
            async with asyncio.timeout(60):
                while len(acknowledged["finished"]) < until:
                    await asyncio.sleep(0.02)
            os.kill(server.pid, signal.SIGKILL)
            server.wait()
            server = serve(tmp_path / "agl.db", port)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
        for reader in readers:
            reader.join()
        server.terminate()
        server.wait()
    store = open_store(str(tmp_path / "agl.db"))
    await check_acknowledged(store, acknowledged)
    await store.close()
