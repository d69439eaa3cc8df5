"""`/health` and `/ready` of a gateway and of a store's server."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentlightning.gateway import Gateway
from agentlightning.gateway.app_server import AppServer
from agentlightning.stores.common import open_store
from agentlightning.stores.http_client import PREFIX
from agentlightning.stores.serialization import encode
from agentlightning.telemetry.store_app import store_app
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer


@pytest.mark.parametrize("kind", ["gateway", "store"])
async def test_a_server_is_ready_while_its_store_answers_and_alive_without_it(kind: str, tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    store = open_store(str(tmp_path / "agl.db"))
    server: Any
    if kind == "gateway":
        server = Gateway(store, ScriptedEngine(tmp_path, [[1]]))
        await server.start()
        root = server.base_url.removesuffix("/v1")
    else:
        server = AppServer(store_app(store, "secret"))
        await server.start()
        root = server.url
    async with httpx.AsyncClient(base_url=root) as client:
        assert [(await client.get(path)).status_code for path in ("/health", "/ready")] == [200, 200]
        await store.close()
        answer = await client.get("/ready")
        assert (answer.status_code, answer.json()["problem"]) == (503, "the store does not answer")
        assert str(tmp_path) not in answer.text
        assert (await client.get("/health")).json() == {"status": "alive"}
    await server.stop()


async def test_a_server_that_stops_answers_those_who_wait_and_logs_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(str(tmp_path / "agl.db"))
    server = AppServer(store_app(store, "secret"))
    await server.start()
    async with httpx.AsyncClient(headers={"Authorization": "Bearer secret"}) as client:
        waiting = asyncio.create_task(client.post(f"{server.url}{PREFIX}/wait", content=encode([0, 20.0, None])))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await server.stop()
        assert (await waiting).status_code == 503
    await store.close()
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
