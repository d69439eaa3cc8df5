"""`POST /v1/reward`: the reward of a running attempt, for whoever holds its key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from agentlightning.contracts.store import LightningStore
from agentlightning.gateway import Gateway
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.types import Attempt, Rollout, Task


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[tuple[LightningStore, Attempt, httpx.AsyncClient]]:
    store = open_store("memory:")
    served = Gateway(store, ScriptedEngine(tmp_path, []), token="the token")
    await served.start()
    attempt = await store.begin(Rollout(task=Task("1", 1), mode="train"), "test", lease=60)
    async with httpx.AsyncClient(base_url=served.base_url) as client:
        yield store, attempt, client
    await served.stop()


Gate = tuple[LightningStore, Attempt, httpx.AsyncClient]


@pytest.mark.parametrize("header", ["Authorization", "x-api-key", "X-AGL-Key"])
async def test_a_number_or_an_object_is_a_reward_of_the_attempt_whose_key_came_with_it(gateway: Gate, header: str) -> None:
    store, attempt, client = gateway
    headers = {header: f"Bearer {attempt.key}" if header == "Authorization" else attempt.key}
    assert (await client.post("/reward", headers=headers, content=b"1")).status_code == 200
    answer = await client.post("/reward", headers=headers, json={"reward": 0.5, "name": "style"})
    [first, second] = (await store.records(attempt.id)).rewards
    assert [(first.name, first.value), (second.name, second.value)] == [("reward", 1.0), ("style", 0.5)]
    assert answer.json() == {"id": second.id, "reward": 0.5, "name": "style"}


@pytest.mark.parametrize(
    "body", ["", "one", "null", "true", "[1]", '"1"', "NaN", "1e999", "{}", '{"reward": "1"}', '{"reward": 1, "nmae": "style"}']
)
async def test_a_body_that_is_no_reward_is_refused_and_nothing_is_recorded(gateway: Gate, body: str) -> None:
    store, attempt, client = gateway
    answer = await client.post("/reward", headers={"x-api-key": attempt.key}, content=body.encode())
    assert answer.status_code == 400
    assert 'Send a number, or {"reward": number}' in answer.json()["error"]["message"]
    assert (await store.records(attempt.id)).rewards == ()


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer guessed"}, {"Authorization": "Bearer the token"}])
async def test_without_the_key_of_an_attempt_there_is_no_reward(gateway: Gate, headers: dict[str, str]) -> None:
    store, attempt, client = gateway
    assert (await client.post("/reward", headers=headers, content=b"1")).status_code == 401
    assert (await store.records(attempt.id)).rewards == ()
    assert len((await store.list())[0]) == 1, "a reward begins no rollout"


async def test_the_key_of_a_closed_attempt_gives_no_reward(gateway: Gate) -> None:
    store, attempt, client = gateway
    await store.finish(attempt.id, "timed_out")
    answer = await client.post("/reward", headers={"x-api-key": attempt.key}, content=b"1")
    assert answer.status_code == 401
    assert "is closed (timed_out)" in answer.json()["error"]["message"]
    assert (await store.records(attempt.id)).rewards == ()


async def test_a_reward_that_the_store_does_not_take_is_an_error_that_asks_for_it_again(gateway: Gate) -> None:
    store, attempt, client = gateway
    await store.close()
    answer = await client.post("/reward", headers={"x-api-key": attempt.key}, content=b"1")
    assert answer.status_code == 503
    assert "Send it again" in answer.json()["error"]["message"]
