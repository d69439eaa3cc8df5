"""`/metrics` of a gateway and of a store's server, read by the official parser."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from agentlightning.gateway import Gateway
from agentlightning.gateway.app_server import AppServer
from agentlightning.stores.common import open_store
from agentlightning.stores.http_client import open_http
from agentlightning.stores.http_server import StoreServer
from agentlightning.telemetry.metrics import Metrics
from agentlightning.telemetry.requests import metrics_route
from agentlightning.telemetry.store_app import store_app
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.types import Reward, Rollout, Task, new_id
from gateway_house import tokenizer_folder, user

__all__ = ["tokenizer_folder"]
TOKEN = "open-sesame"


class Scraper:
    """Reads `/metrics` with the token."""

    def __init__(self, root: str) -> None:
        self.client = httpx.AsyncClient(base_url=root, headers={"Authorization": f"Bearer {TOKEN}"})
        self.text = ""

    async def read(self) -> dict[str, float]:
        answer = await self.client.get("/metrics")
        assert answer.status_code == 200
        self.text = answer.text
        values: dict[str, float] = {}
        for family in read_text(answer.text):
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                values[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
        return values


def rollout(**fields: Any) -> Rollout:
    return Rollout(task=Task(new_id(), "question"), mode="train", **fields)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[AppServer, Any, Scraper]]:
    store = open_store(str(tmp_path / "agl.db"))
    server = AppServer(store_app(store, TOKEN))
    await server.start()
    scraper, client = Scraper(server.url), open_http(server.url.replace("://", f"://{TOKEN}@"))
    yield server, client, scraper
    await client.close()
    await scraper.client.aclose()
    await server.stop()
    await store.close()


async def test_a_store_server_counts_attempts_records_and_the_queue(served: Any) -> None:
    _, store, scraper = served
    await store.add([rollout() for _ in range(4)])
    (_, good), (_, bad), (_, crashed) = await store.claim("w", lease=60, limit=3)
    await store.record([Reward(attempt_id=good.id, value=1.0), Reward(attempt_id=good.id, value=0.5, name="style")])
    await store.finish(good.id, "succeeded")
    await store.finish(bad.id, "failed", error="boom", retry=True)
    await store.finish(crashed.id, "failed", error="boom")
    ((_, retry),) = await store.claim("w", lease=60)
    assert retry.number == 2
    values = await scraper.read()
    assert values["agl_rollouts_added_total{mode=train}"] == 4
    assert values["agl_attempts_started_total{mode=train}"] == 4
    assert values["agl_attempt_retries_total{mode=train}"] == 1
    assert values["agl_attempts_ended_total{status=succeeded}"] == 1
    assert values["agl_attempts_ended_total{status=failed}"] == 2
    assert values["agl_rollouts_ended_total{status=failed}"] == 1  # the other failed attempt is tried again
    assert values["agl_records_total{kind=reward}"] == 2
    assert values["agl_store_rollouts{mode=train,status=queued}"] == 1
    assert values["agl_store_rollouts{mode=train,status=running}"] == 1
    assert values["agl_attempt_duration_seconds_count"] == 3
    assert values["agl_store_operation_duration_seconds_count{operation=finish}"] == 3
    assert values["agl_store_lost_attempts"] == 0
    assert values["agl_store_up"] == 1
    assert values["agl_requests_total{path=/store/v1/finish,status=200}"] == 3
    assert values["process_resident_memory_bytes"] > 1e6
    assert "agl_policy_version{policy=main}" not in values  # nothing published one


async def test_the_metrics_need_the_token_of_the_server_and_an_attempts_key_is_none(served: Any) -> None:
    server, store, scraper = served
    attempt = await store.begin(rollout(), "w", lease=60)
    async with httpx.AsyncClient(base_url=server.url) as stranger:
        for headers in ({}, {"Authorization": f"Bearer {attempt.key}"}, {"Authorization": "Bearer open-sesam"}):
            answer = await stranger.get("/metrics", headers=headers)
            assert answer.status_code == 401
            assert "agl_" not in answer.text
    await scraper.read()
    assert attempt.key not in scraper.text
    assert TOKEN not in scraper.text


async def test_strangers_add_no_labels_and_an_expired_lease_is_counted(served: Any) -> None:
    server, store, scraper = served
    await store.add([rollout()])
    await store.claim("w", lease=0.01)
    async with httpx.AsyncClient(base_url=server.url) as stranger:
        for number in range(5):
            await stranger.get(f"/admin-{number}.php")
            await stranger.post(f"/store/v1/steal-{number}")
    await asyncio.sleep(0.05)
    assert await store.claim("w", lease=60)
    values = await scraper.read()
    assert "admin" not in scraper.text
    assert "steal" not in scraper.text
    assert values["agl_requests_total{path=unknown,status=404}"] == 5
    assert values["agl_requests_total{path=/store/v1/{method},status=401}"] == 5
    assert values["agl_store_lost_attempts"] == 1


async def test_a_store_that_does_not_answer_has_no_queue_and_the_rest_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(str(tmp_path / "agl.db"))
    server = AppServer(store_app(store, TOKEN))
    await server.start()
    scraper = Scraper(server.url)
    assert (await scraper.read())["agl_store_up"] == 1
    await store.close()
    with caplog.at_level(logging.WARNING):
        values = await scraper.read()
    assert values["agl_store_up"] == 0
    assert not any(name.startswith(("agl_store_rollouts", "agl_store_lost")) for name in values)
    assert "agl_requests_in_flight{path=/metrics}" in values
    assert "The metrics lack the queue" in caplog.text
    await scraper.client.aclose()
    await server.stop()


async def test_a_gateway_counts_calls_and_tokens(tokenizer_folder: Path) -> None:
    metrics = Metrics()
    store = metrics.store(open_store("memory:"))
    routes = [metrics_route(metrics, store, StoreServer(store, TOKEN).admits)]
    gateway = Gateway(store, ScriptedEngine(tokenizer_folder, lambda prompt, sampling: "hello"), metrics=metrics, extra_routes=routes)
    await gateway.start()
    scraper = Scraper(gateway.base_url.removesuffix("/v1"))
    attempt = await store.begin(rollout(), "w", lease=60)
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=attempt.key, max_retries=0) as client:
        for _ in range(2):
            await client.chat.completions.create(model="scripted", messages=[user("hi")])  # type: ignore[list-item]
        await client.models.list()
    root = gateway.base_url.removesuffix("/v1")
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {attempt.key}"}) as client:
        body = {"model": "scripted", "messages": [user("hi")]}
        assert (await client.post(f"{root}/chat/completions", json=body)).status_code == 200  # another base, the same endpoint
        assert (await client.post(f"{root}/v1/chat/completions", json={"messages": 3})).status_code == 400
    values, completions = await scraper.read(), (await store.records(attempt.id)).completions
    assert values["agl_requests_total{path=/v1/chat/completions,status=200}"] == 3
    assert values["agl_requests_total{path=/v1/chat/completions,status=400}"] == 1
    assert values["agl_request_duration_seconds_count{path=/v1/chat/completions}"] == 4
    assert values["agl_requests_in_flight{path=/v1/chat/completions}"] == 0
    assert values["agl_requests_in_flight{path=/metrics}"] == 1
    assert values["agl_model_calls_total{status=completed}"] == 3
    assert values["agl_model_calls_total{status=refused}"] == 1
    assert values["agl_sampled_tokens_total"] == sum(len(reply.response_ids) for reply in completions) > 0
    assert values["agl_prompt_tokens_total"] == sum(len(reply.prompt_ids) for reply in completions) > 0
    answer = await scraper.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert "openmetrics" in answer.headers["content-type"]
    assert any(family.name == "agl_requests" for family in read_openmetrics(answer.text))
    await scraper.client.aclose()
    await gateway.stop()
    await store.close()


async def test_the_time_of_a_scrape_depends_on_the_work_not_on_the_history(tmp_path: Path) -> None:
    """The aggregates of the store use indexes: a query plan with a scan of a table would grow with the history."""
    import sqlite3

    store = open_store(str(tmp_path / "agl.db"))
    await store.add([rollout()])
    await store.close()
    with sqlite3.connect(tmp_path / "agl.db") as connection:
        for query in (
            "SELECT status, mode, count(*) FROM rollouts WHERE status IN ('queued', 'running') GROUP BY status, mode",
            "SELECT count(*) FROM attempts WHERE status = 'lost'",
        ):
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
            assert all("INDEX" in line for line in plan), plan
