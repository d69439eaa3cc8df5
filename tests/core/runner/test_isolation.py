"""A rollout that may have killed its process runs alone, and the attempts that it cost others do not count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentlightning.config.schema import RunnerSettings
from agentlightning.contracts.store import LightningStore, RolloutState
from agentlightning.runner.isolation import GIVEN_BACK, NOTE
from agentlightning.runner.runner import NO_GATEWAY, Runner
from agentlightning.stores.common import ENDED, open_store
from agentlightning.types import LLM, Attempt, Rollout, Task


@pytest.fixture
async def store() -> AsyncIterator[LightningStore]:
    opened = open_store("memory:")
    yield opened
    await opened.close()


def llm(attempt: Attempt) -> LLM:
    return LLM("scripted", "http://127.0.0.1:1/v1", attempt.key)


def train(count: int, attempts: int) -> list[Rollout]:
    return [Rollout(task=Task(str(n), n), mode="train", max_attempts=attempts) for n in range(count)]


async def ended(store: LightningStore) -> list[RolloutState]:
    """Wait until all rollouts have ended."""
    while True:
        states, _ = await store.list()
        if all(state.status in ENDED for state in states):
            return states
        await asyncio.sleep(0.02)


async def company(store: LightningStore) -> tuple[dict[int, int], list[RolloutState]]:
    """Run the queued rollouts. Return the most rollouts that ran beside each task, itself included."""
    running, most = set[int](), dict[int, int]()

    async def agent(task: int) -> float:
        running.add(task)
        for _ in range(5):
            await asyncio.sleep(0.01)
            most.update({name: max(most.get(name, 0), len(running)) for name in running})
        running.discard(task)
        return 1.0

    async with asyncio.timeout(20):
        runner = asyncio.create_task(Runner(store, agent, llm, RunnerSettings(concurrency=8)).run())
        states = await ended(store)
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)
    return most, states


@pytest.mark.parametrize(("attempts", "alone"), [(2, True), (3, False)])
async def test_the_last_attempt_of_a_rollout_whose_runner_was_lost_runs_alone(store: LightningStore, attempts: int, alone: bool) -> None:
    await store.add(train(4, attempts))
    await store.claim("dead", lease=0.05, limit=3)
    await asyncio.sleep(0.1)
    most, states = await company(store)
    assert {state.status for state in states} == {"succeeded"}
    assert all((most[task] == 1) == alone for task in range(3)), most
    lost = [[a.status for a in state.attempts if a.error != GIVEN_BACK] for state in states]
    assert lost == [["lost", "succeeded"]] * 3 + [["succeeded"]]


async def test_a_rollout_that_shared_a_dead_worker_runs_alone_once_and_then_in_company(store: LightningStore) -> None:
    await store.add(train(6, 1))
    for _, attempt in await store.claim("dead", lease=60, limit=2):
        await store.finish(attempt.id, "cancelled", error="It died." + NOTE, retry=True)
    most, states = await company(store)
    assert [most[task] for task in (0, 1)] == [1, 1]
    assert max(most.values()) == 4
    assert {state.status for state in states} == {"succeeded"}


async def test_a_runner_without_its_gateway_starts_nothing_and_no_attempt_counts(store: LightningStore) -> None:
    await store.add(train(4, 1))
    up, started = asyncio.Event(), list[int]()

    async def agent(task: int) -> float:
        started.append(task)
        if not up.is_set():
            raise ConnectionError("refused")
        return 1.0

    async def answers() -> bool:
        return up.is_set()

    runner = Runner(store, agent, llm, RunnerSettings(concurrency=2), gateway_answers=answers)
    running = asyncio.create_task(runner.run())
    await asyncio.sleep(1.0)
    assert len(started) <= 4
    states, _ = await store.list()
    assert {state.status for state in states} == {"queued"}
    up.set()
    async with asyncio.timeout(20):
        states = await ended(store)
    assert {state.status for state in states} == {"succeeded"}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert any(str(state.attempts[0].error).startswith(NO_GATEWAY) for state in states)
