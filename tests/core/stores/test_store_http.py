"""A store behind HTTP keeps the contract, through lost answers too."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from agentlightning.contracts.store import LightningStore
from agentlightning.errors import ConfigError, NotFound, StoreError, StoreUnavailable, WireError
from agentlightning.stores.common import open_store
from agentlightning.stores.http_client import LONG_POLL, METHODS, StoreClient, open_http
from agentlightning.stores.serialization import encode
from agentlightning.telemetry.store_app import store_app
from agentlightning.testing.store import StoreContract, rollouts
from agentlightning_sqlite.store import SQLiteStore

TOKEN = "sesame"


class Served:
    """A real server in a thread of its own."""

    def __init__(self, app: Any, port: int = 0) -> None:
        config = uvicorn.Config(app, port=port, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(5)


@pytest.fixture
def served() -> Iterator[Served]:
    with Served(store_app(open_store("memory:"), TOKEN)) as server:
        yield server


class TestStoreClient(StoreContract):
    @pytest.fixture
    async def store(self, served: Served) -> Any:
        client = open_http(f"http://{TOKEN}@127.0.0.1:{served.port}")
        yield client
        await client.close()


def test_every_method_of_the_contract_is_served() -> None:
    contract = {name for name in vars(LightningStore) if not name.startswith("_")}
    assert contract - {"close"} == set(METHODS)


async def test_calls_are_repeated_after_a_lost_answer_and_claim_the_same_attempts() -> None:
    memory = open_store("memory:")
    with Served(store_app(memory, TOKEN)) as server:
        proxy = await LossyProxy.start(server.port)
        client = StoreClient(f"http://127.0.0.1:{proxy.port}", TOKEN)
        added = rollouts(4)
        proxy.lose = True
        await client.add(added)
        proxy.lose = True
        claimed = await client.claim("w", lease=60, limit=2)
        assert [rollout.id for rollout, _ in claimed] == [added[0].id, added[1].id]
        assert [state.status for state in (await memory.list())[0]] == ["running", "running", "queued", "queued"]
        proxy.lose = True
        assert (await client.finish(claimed[0][1].id, "failed", retry=True)).status == "queued"
        proxy.lose = True
        begun = await client.begin(rollouts(1)[0], "me", lease=60)
        assert begun.number == 1
        proxy.lose = True
        assert await client.cancel([added[2].id]) == 1
        assert proxy.lost == 5
        await client.close()
        await proxy.stop()


class LossyProxy:
    """Passes bytes on; with `lose` set it breaks the connection at the first byte of the next answer."""

    def __init__(self, target: int) -> None:
        self.target, self.lose, self.lost = target, False, 0

    @classmethod
    async def start(cls, target: int) -> LossyProxy:
        proxy = cls(target)
        proxy.server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        proxy.port = proxy.server.sockets[0].getsockname()[1]
        return proxy

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)

        async def requests() -> None:
            while data := await reader.read(65536):
                up_writer.write(data)
            up_writer.close()

        task = asyncio.ensure_future(requests())
        while data := await up_reader.read(65536):
            if self.lose:
                self.lose, self.lost = False, self.lost + 1
                break
            writer.write(data)
        task.cancel()
        up_writer.close()
        writer.close()

    async def stop(self) -> None:
        self.server.close()
        await asyncio.sleep(0)


async def test_a_server_that_starts_later_is_waited_for() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    client = StoreClient(f"http://127.0.0.1:{port}", TOKEN)
    adding = asyncio.ensure_future(client.add(rollouts(1)))
    await asyncio.sleep(0.2)
    assert not adding.done()
    with Served(store_app(open_store("memory:"), TOKEN), port):
        await adding
        await client.close()
    impatient = StoreClient(f"http://127.0.0.1:{port}", TOKEN, patience=0.2)
    with pytest.raises(StoreError, match=f"127.0.0.1:{port} did not answer `policies`"):
        await impatient.policies()
    await impatient.close()


async def test_a_wrong_token_is_refused_before_anything_is_read(served: Served) -> None:
    client = StoreClient(served.url, "guess")
    with pytest.raises(StoreError, match="refused the token"):
        await client.list()
    await client.close()
    async with httpx.AsyncClient() as bare:
        answer = await bare.post(f"{served.url}/store/v1/list", content=b"")
        assert answer.status_code == 401
    with pytest.raises(ConfigError, match="is empty"):
        store_app(open_store("memory:"), "")


async def test_bad_requests_get_named_errors(served: Served) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=f"{served.url}/store/v1", headers=headers) as bare:
        assert (await bare.post("/add", content=b"{}")).status_code == 400
        assert (await bare.post("/heartbeat", content=encode(("a",)))).status_code == 400
        assert (await bare.post("/__class__", content=encode(()))).status_code == 404
        assert (await bare.post("/close", content=encode(()))).status_code == 404
        assert (await bare.get("/list")).status_code == 405
    client = StoreClient(served.url, TOKEN)
    with pytest.raises(NotFound, match="No rollout 'nobody' in the store"):
        await client.read("nobody")
    with pytest.raises(WireError):
        await client.claim("w", lease="long")  # type: ignore[arg-type]
    await client.close()


async def test_another_service_at_the_address_is_named() -> None:
    async def hello(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"nginx"})

    with Served(hello) as server:
        client = StoreClient(server.url, TOKEN)
        with pytest.raises(StoreError, match=r"is not a store: it answered `policies` with HTTP 404 \(nginx\)"):
            await client.policies()
        await client.close()


async def test_an_error_of_the_store_arrives_with_its_name_and_the_rest_as_a_store_error(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SQLiteStore):
        async def policies(self, name: str | None = None) -> Any:
            raise ZeroDivisionError("oops")

    with Served(store_app(Broken(), TOKEN)) as server:
        client = StoreClient(server.url, TOKEN)
        with pytest.raises(StoreError, match="The server failed: ZeroDivisionError: oops"):
            await client.policies()
        assert "failed in the call 'policies'" in caplog.text
        await client.close()


async def test_a_store_that_cannot_answer_now_is_asked_again() -> None:
    class Full(SQLiteStore):
        refusals = 0

        async def finish(self, *args: Any, **kwargs: Any) -> Any:
            if self.refusals < 2:
                self.refusals += 1
                raise StoreUnavailable("The disk is full.")
            return await super().finish(*args, **kwargs)

    store = Full()
    with Served(store_app(store, TOKEN)) as server:
        client = StoreClient(server.url, TOKEN)
        await client.add(rollouts(1))
        ((_, attempt),) = await client.claim("w", lease=60)
        assert (await client.finish(attempt.id, "succeeded")).status == "succeeded"
        assert store.refusals == 2
        store.refusals = 0
        hasty = StoreClient(server.url, TOKEN, patience=0.0)
        with pytest.raises(StoreError, match="The disk is full"):
            await hasty.finish(attempt.id, "succeeded")
        await client.close()
        await hasty.close()


def test_an_address_carries_host_port_and_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGL_TOKEN", raising=False)
    assert open_http("http://a%2Fb@host:80").url == "http://host:80"
    with pytest.raises(StoreError, match="set AGL_TOKEN"):
        open_http("http://host:80")
    with pytest.raises(StoreError, match="Write http://token@host:port"):
        open_http("ftp://host")
    monkeypatch.setenv("AGL_TOKEN", "t")
    assert open_http("https://host").url == "https://host"
    assert 0 < LONG_POLL < 60
