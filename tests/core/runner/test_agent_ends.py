"""However an agent ends, its attempt is closed, the runner goes on, and nothing is tried again in vain."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agentlightning.capture.recorder import current
from agentlightning.config.schema import RunnerSettings
from agentlightning.contracts.store import LightningStore, RolloutState
from agentlightning.runner.runner import Runner
from agentlightning.stores.common import open_store
from agentlightning.types import LLM, Call, Reward, Rollout, Task


class HastyRunner(Runner):
    GRACE = 0.2
    LOOK = 0.05


@asynccontextmanager
async def running(agent: Any, *tasks: Any, **settings: Any) -> AsyncGenerator[tuple[LightningStore, Runner]]:
    """A store with rollouts, and a runner at work."""
    store = open_store("memory:")
    await store.add([Rollout(task=Task(str(n), task), mode="train", max_attempts=3) for n, task in enumerate(tasks)])
    runner = HastyRunner(store, agent, lambda attempt: LLM("scripted", "http://127.0.0.1:1/v1", attempt.key), RunnerSettings(**settings))
    task = asyncio.create_task(runner.run())
    try:
        yield store, runner
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.done()


async def ended(store: LightningStore, count: int = 1) -> list[RolloutState]:
    """The rollouts in the order of their tasks, when all have ended."""
    cursor = 0
    async with asyncio.timeout(10):
        while len((await store.list(status=["succeeded", "failed", "cancelled"]))[0]) < count:
            cursor = await store.wait(cursor, timeout=1)
    return (await store.list())[0]


async def stubborn(task: Any) -> float:
    """Swallows every cancellation for two seconds."""
    until = time.monotonic() + 2
    while task == "hang" and time.monotonic() < until:
        try:
            await asyncio.sleep(60)
        except:  # noqa: E722
            continue
    return 1.0


async def test_an_agent_that_swallows_its_cancellation_is_timed_out_and_abandoned_and_its_slot_is_free() -> None:
    async with running(stubborn, "hang", "good", timeout=0.1, concurrency=1, on_failure="drop") as (store, runner):
        states = await ended(store, 2)
        assert [state.attempts[0].status for state in states] == ["timed_out", "succeeded"]
        assert runner.abandoned == 1


async def test_a_runner_with_an_agent_that_swallows_its_cancellation_can_be_stopped() -> None:
    async with running(stubborn, "hang") as (store, _):
        await asyncio.sleep(0.2)
    [state], _ = await store.list()
    assert [attempt.status for attempt in state.attempts] == ["cancelled"]


def test_the_event_loop_ends_with_an_abandoned_agent() -> None:
    async def main() -> None:
        async with running(endless, "hang", timeout=0.05, on_failure="drop") as (store, _):
            await ended(store)

    async def endless(task: Any) -> float:
        while True:
            try:
                await asyncio.sleep(60)
            except GeneratorExit:
                raise
            except:  # noqa: E722
                continue

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


class Own(BaseException):
    """An agent's own exception, whose text cannot be read."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


ERRORS = {
    "GeneratorExit": GeneratorExit("stop"),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "SystemExit": SystemExit(3),
    "StopIteration": StopIteration(7),
    "StopAsyncIteration": StopAsyncIteration(),
    "ExceptionGroup": BaseExceptionGroup("both", [KeyboardInterrupt(), ValueError("x")]),
    "Own": Own(),
    "CancelledError": asyncio.CancelledError(),
    "MemoryError": MemoryError("x" * 10_000_000),
}


@pytest.mark.parametrize("threaded", [False, True])
async def test_any_exception_of_an_agent_closes_its_own_attempt_alone(threaded: bool) -> None:
    async def solve(task: Any) -> float:
        return solve_in_a_thread(task)

    def solve_in_a_thread(task: Any) -> float:
        if task in ERRORS:
            raise ERRORS[task]
        return 1.0

    tasks = [*ERRORS, "good"]
    async with running(solve_in_a_thread if threaded else solve, *tasks, on_failure="drop") as (store, _):
        states = await ended(store, len(tasks))
    for state in states:
        [attempt] = state.attempts
        name = state.rollout.task.input
        assert attempt.status == ("succeeded" if name == "good" else "failed")
        if name != "good":
            assert len(attempt.error or "") < 20_000
            assert str(name) in str(attempt.error)
        if name == "Own":
            assert "its __str__ raised RuntimeError" in str(attempt.error)


@pytest.mark.parametrize("threaded", [False, True])
async def test_a_cancelled_rollout_stops_its_agent_at_once(threaded: bool) -> None:
    started, stopped = threading.Event(), threading.Event()

    async def solve(task: Any) -> float:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()
        return 1.0

    def solve_in_a_thread(task: Any) -> float:
        started.set()
        try:
            for _ in range(6000):
                time.sleep(0.01)
        finally:
            stopped.set()
        return 1.0

    async with running(solve_in_a_thread if threaded else solve, "task", lease=600.0) as (store, runner):
        assert await asyncio.to_thread(started.wait, 5)
        [state], _ = await store.list()
        await store.cancel([state.rollout.id])
        assert await asyncio.to_thread(stopped.wait, 3)
        await asyncio.sleep(0.1)
        assert runner.running == runner.abandoned == 0
        [state], _ = await store.list()
        assert [attempt.status for attempt in state.attempts] == ["cancelled"]


async def test_the_same_error_twice_is_not_tried_a_third_time_and_says_so() -> None:
    async def solve(task: Any) -> float:
        raise KeyError("answer")

    async with running(solve, "task") as (store, _):
        [state] = await ended(store)
    assert state.status == "failed"
    assert len(state.attempts) == 2
    assert "Not tried again: the attempt before it ended with the same error at the same place." in str(state.attempts[-1].error)


async def test_other_errors_and_lost_connections_are_tried_again() -> None:
    tries: list[Any] = []

    async def solve(task: Any) -> float:
        tries.append(task)
        raise ConnectionError("refused") if task == "connection" else ValueError(f"try {tries.count(task)}")

    async with running(solve, "connection", "other") as (store, _):
        states = await ended(store, 2)
    assert [len(state.attempts) for state in states] == [3, 3]
    assert all("Not tried again" not in str(state.attempts[-1].error) for state in states)


async def test_a_reward_of_the_wrong_type_is_not_tried_again_but_a_nan_is() -> None:
    async def solve(task: Any) -> Any:
        return "ten" if task == "text" else float("nan")

    async with running(solve, "text", "nan") as (store, _):
        text, nan = await ended(store, 2)
    assert (len(text.attempts), len(nan.attempts)) == (1, 2)
    assert "a reward of this type stays wrong" in str(text.attempts[0].error)


async def test_a_refused_prompt_is_not_tried_again() -> None:
    async def solve(task: Any) -> float:
        recorder = current()
        assert recorder is not None
        await recorder.store.record([Call(id="c", attempt_id=recorder.attempt.id, index=0, status="refused", detail="too long")])
        raise RuntimeError("Error code: 400")

    async with running(solve, "task") as (store, _):
        [state] = await ended(store)
    assert len(state.attempts) == 1
    assert "would refuse it again" in str(state.attempts[0].error)


async def test_a_lost_attempt_keeps_its_late_records_and_does_not_win() -> None:
    store = open_store("memory:")
    await store.add([Rollout(task=Task("1", None), mode="train", max_attempts=2)])
    [(rollout, first)] = await store.claim("one", lease=0.01)
    await asyncio.sleep(0.05)
    [(_, second)] = await store.claim("two", lease=60)
    await store.record([Reward(attempt_id=first.id, value=1.0, name="late")])
    await store.finish(second.id, "succeeded")
    state, attempts = await store.read(rollout.id)
    assert [attempt.status for attempt in state.attempts] == ["lost", "succeeded"]
    assert state.winner is not None
    assert state.winner.id == second.id
    assert [len(records.rewards) for records in attempts] == [1, 0]


@pytest.mark.parametrize(("timeout", "in_a_row"), [(300.0, 8), (2.0, 1)])
async def test_agents_start_in_a_row_while_that_takes_little_of_their_timeout(timeout: float, in_a_row: int) -> None:
    seen: list[str] = []

    async def agent(_: Any) -> float:
        seen.append("started")
        await asyncio.sleep(0)
        seen.append("went on")
        return 1.0

    async with running(agent, *range(8), concurrency=8, timeout=timeout) as (store, _):
        await ended(store, 8)
    assert seen.index("went on") == in_a_row  # so their first calls share a batch of the engine


async def test_agents_start_one_after_the_other_so_that_building_their_clients_uses_nobodys_timeout() -> None:
    async def solve(task: Any) -> float:
        time.sleep(0.02)  # builds its client
        for _ in range(5):
            await asyncio.sleep(0)
        return 1.0

    async with running(solve, *range(60), concurrency=60, timeout=0.6, on_failure="drop") as (store, _):
        states = await ended(store, 60)
    assert {state.status for state in states} == {"succeeded"}
