"""The runner: every claimed attempt is closed with what happened, and the failure policy decides what becomes of it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.capture.recorder import current
from agentlightning.config.schema import RunnerSettings
from agentlightning.contracts.store import RolloutState
from agentlightning.errors import ConfigError, StoreError
from agentlightning.runner.agent_call import takes_llm
from agentlightning.runner.runner import Runner
from agentlightning.stores.common import open_store
from agentlightning.types import LLM, Attempt, Call, Rollout, Span, Task
from agentlightning_sqlite.store import SQLiteStore


def llm(attempt: Attempt) -> LLM:
    return LLM("scripted", "http://127.0.0.1:1/v1", attempt.key)


async def run(agent: Any, *tasks: Any, **settings: Any) -> list[tuple[RolloutState, Any]]:
    """Run an agent on tasks until all rollouts have ended; the states and records of their winners."""
    store = open_store("memory:")
    rollouts = [Rollout(task=Task(str(n), task), mode="train", max_attempts=settings.get("attempts", 3)) for n, task in enumerate(tasks)]
    await store.add(rollouts)
    runner = asyncio.create_task(Runner(store, agent, llm, RunnerSettings(**settings)).run())
    try:
        cursor = 0
        async with asyncio.timeout(20):
            while True:
                states, _ = await store.list(status=["succeeded", "failed", "cancelled"])
                if len(states) == len(rollouts):
                    break
                cursor = await store.wait(cursor)
    finally:
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)
    found = [await store.read(rollout.id) for rollout in rollouts]
    return [(state, records[-1]) for state, records in found]


async def test_an_async_agent_gets_the_task_and_its_own_key_and_its_number_is_the_return() -> None:
    keys: list[str] = []

    async def solve(task: Any, llm: agl.LLM) -> float:
        keys.append(llm.api_key)
        return task["x"] * 2.0

    done = await run(solve, {"x": 1}, {"x": 2})
    assert [(state.status, records.rewards[0].name, records.rewards[0].value) for state, records in done] == [
        ("succeeded", "return", 2.0),
        ("succeeded", "return", 4.0),
    ]
    assert sorted(keys) == sorted(state.attempts[0].key for state, _ in done)


async def test_a_sync_agent_runs_in_a_thread_with_the_rollout_current_there() -> None:
    def solve(task: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        recorder = current()
        assert recorder is not None
        agl.note("hello", task=task)
        agl.reward(0.5, name="style")

    [(state, records)] = await run(solve, "a task")
    assert state.status == "succeeded"
    assert [span.name for span in records.spans] == ["hello"]
    assert [(reward.name, reward.value) for reward in records.rewards] == [("style", 0.5)]


async def test_sync_agents_run_side_by_side() -> None:
    together = threading.Barrier(4, timeout=5)

    def solve(task: Any) -> float:
        together.wait()
        return 1.0

    done = await run(solve, *range(4))
    assert all(state.status == "succeeded" for state, _ in done)


async def test_no_more_than_concurrency_rollouts_are_under_way() -> None:
    under_way = most = 0

    async def solve(task: Any) -> float:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return 0.0

    await run(solve, *range(12), concurrency=3)
    assert most == 3


async def test_an_agent_that_raises_is_tried_again_and_the_error_names_its_line() -> None:
    tries: list[int] = []

    async def solve(task: Any) -> float:
        tries.append(1)
        if len(tries) < 3:
            raise ZeroDivisionError(f"no good {len(tries)}")
        return 1.0

    [(state, _)] = await run(solve, "task", attempts=3)
    assert state.status == "succeeded"
    assert [attempt.status for attempt in state.attempts] == ["failed", "failed", "succeeded"]
    assert "ZeroDivisionError: no good 1 at " in str(state.attempts[0].error)
    assert "test_runner.py:" in str(state.attempts[0].error)


async def test_drop_leaves_a_failed_rollout_without_a_reward() -> None:
    async def solve(task: Any) -> float:
        raise ValueError("bad")

    [(state, records)] = await run(solve, "task", on_failure="drop")
    assert (state.status, len(state.attempts), records.rewards) == ("failed", 1, ())


async def test_penalise_gives_a_failed_rollout_the_penalty() -> None:
    async def solve(task: Any) -> float:
        raise ValueError("bad")

    [(state, records)] = await run(solve, "task", on_failure="penalise", penalty=-1.0)
    assert state.status == "failed"
    assert [(reward.name, reward.value, reward.source) for reward in records.rewards] == [("penalty", -1.0, "runner")]


@pytest.mark.parametrize("policy", ["retry", "penalise"])
async def test_records_that_cannot_be_stored_close_the_attempt_and_try_again(policy: Any) -> None:
    class Full(SQLiteStore):
        async def record(self, records: Any) -> None:
            if any(isinstance(record, Span) for record in records):
                raise StoreError("the disk is full")
            await super().record(records)

    async def solve(task: Any) -> float:
        agl.note("x")
        await asyncio.sleep(0.02)
        raise ValueError("the agent is wrong")

    store = Full()
    await store.add([Rollout(task=Task("1", None), mode="train", max_attempts=2)])
    runner = asyncio.create_task(Runner(store, solve, llm, RunnerSettings(on_failure=policy)).run())
    async with asyncio.timeout(10):
        while not (await store.list(status=["failed"]))[0]:
            assert not runner.done()
            await asyncio.sleep(0.02)
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)
    [state], _ = await store.list()
    assert [attempt.status for attempt in state.attempts] == ["failed", "failed"]
    assert all("the disk is full" in str(attempt.error) for attempt in state.attempts)


async def test_an_engine_that_fails_is_never_penalised_but_tried_again() -> None:
    tries: list[str] = []

    async def solve(task: Any) -> float:
        recorder = current()
        assert recorder is not None
        tries.append(recorder.attempt.id)
        if len(tries) == 1:
            await recorder.store.record([Call(id="c", attempt_id=recorder.attempt.id, index=0, status="error", detail="the engine broke")])
            raise RuntimeError("500 from the model")
        raise ValueError("bad")

    [(state, records)] = await run(solve, "task", on_failure="penalise", penalty=-1.0)
    assert [attempt.status for attempt in state.attempts] == ["failed", "failed"]
    assert [reward.attempt_id for reward in records.rewards] == [tries[1]]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "good", [1]])
async def test_a_return_that_is_no_finite_number_fails_and_says_so(wrong: Any) -> None:
    async def solve(task: Any) -> Any:
        return wrong

    [(state, records)] = await run(solve, "task", on_failure="drop")
    assert state.status == "failed"
    assert "Use a finite number" in str(state.attempts[0].error)
    assert records.rewards == ()


async def test_an_async_agent_that_hangs_is_timed_out() -> None:
    async def solve(task: Any) -> float:
        await asyncio.sleep(60)
        return 1.0

    [(state, _)] = await run(solve, "task", on_failure="drop", timeout=0.05)
    assert state.attempts[0].status == "timed_out"
    assert "within 0.05 s" in str(state.attempts[0].error)


async def test_a_sync_agent_that_hangs_is_timed_out_its_thread_abandoned_and_counted() -> None:
    store, go_on = open_store("memory:"), threading.Event()
    await store.add([Rollout(task=Task("1", None), mode="train")])
    runner = Runner(store, lambda task: go_on.wait(30), llm, RunnerSettings(timeout=0.05, on_failure="drop"))
    runner.GRACE = 0.1
    task = asyncio.create_task(runner.run())
    cursor = 0
    while not (await store.list(status=["failed"]))[0]:
        cursor = await store.wait(cursor, timeout=5)
    assert runner.abandoned == 1
    go_on.set()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_timeout_that_the_agent_raises_itself_is_its_own_error() -> None:
    async def solve(task: Any) -> float:
        raise TimeoutError("the database was slow")

    [(state, _)] = await run(solve, "task", on_failure="drop")
    assert state.attempts[0].status == "failed"
    assert "the database was slow" in str(state.attempts[0].error)


@pytest.mark.parametrize("threaded", [False, True])
async def test_a_cancellation_of_the_agents_own_is_its_failure(threaded: bool) -> None:
    async def solve(task: Any) -> float:
        raise asyncio.CancelledError

    def solve_in_a_thread(task: Any) -> float:
        raise asyncio.CancelledError

    [(state, _)] = await run(solve_in_a_thread if threaded else solve, "task", on_failure="drop")
    [attempt] = state.attempts
    assert (state.status, attempt.status) == ("failed", "failed")
    assert "CancelledError" in str(attempt.error)
    assert "test_runner.py" in str(attempt.error)


async def test_a_store_that_refuses_one_heartbeat_loses_no_attempt(caplog: pytest.LogCaptureFixture) -> None:
    class Busy(SQLiteStore):
        beats = 0

        async def heartbeat(self, attempt_id: str, *, lease: float) -> None:
            self.beats += 1
            if self.beats == 1:
                raise StoreError("the database is locked")
            await super().heartbeat(attempt_id, lease=lease)

    store, runs = Busy(), 0
    await store.add([Rollout(task=Task("1", None), mode="train")])

    async def solve(task: Any) -> float:
        nonlocal runs
        runs += 1
        await asyncio.sleep(1.5)
        return 1.0

    task = asyncio.create_task(Runner(store, solve, llm, RunnerSettings(lease=0.75)).run())
    async with asyncio.timeout(10):
        while not (await store.list(status=["succeeded"]))[0]:
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    [state], _ = await store.list()
    assert (runs, [attempt.status for attempt in state.attempts]) == (1, ["succeeded"])
    assert "the database is locked" in caplog.text


async def test_a_stopped_runner_gives_its_rollouts_back() -> None:
    store, started = open_store("memory:"), asyncio.Event()
    await store.add([Rollout(task=Task("1", None), mode="train")])

    async def solve(task: Any) -> float:
        started.set()
        await asyncio.sleep(60)
        return 1.0

    task = asyncio.create_task(Runner(store, solve, llm, RunnerSettings()).run())
    await started.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    [state], _ = await store.list()
    assert state.status == "queued"
    assert state.attempts[0].status == "cancelled"


async def test_a_runner_that_is_stopped_during_its_claim_gives_the_rollouts_back() -> None:
    store, claimed = open_store("memory:"), asyncio.Event()
    await store.add([Rollout(task=Task(str(n), None), mode="train") for n in range(3)])
    claim = store.claim

    async def slow_answer(*args: Any, **settings: Any) -> Any:
        answer = await claim(*args, **settings)
        claimed.set()
        await asyncio.sleep(0.2)
        return answer

    store.claim = slow_answer
    task = asyncio.create_task(Runner(store, lambda _: 1.0, llm, RunnerSettings()).run())
    await claimed.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    states, _ = await store.list()
    assert [state.status for state in states] == ["queued"] * 3


async def test_an_attempt_that_was_lost_stops_its_agent_and_changes_nothing() -> None:
    store = open_store("memory:")
    await store.add([Rollout(task=Task("1", None), mode="train")])
    stopped, started = asyncio.Event(), asyncio.Event()

    async def solve(task: Any) -> float:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()
        return 1.0

    task = asyncio.create_task(Runner(store, solve, llm, RunnerSettings(lease=0.3)).run())
    await started.wait()
    [state], _ = await store.list()
    await store.cancel([state.rollout.id])
    await asyncio.wait_for(stopped.wait(), 5)
    await asyncio.sleep(0.05)
    [state], _ = await store.list()
    assert state.status == "cancelled"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_idle_runners_claim_at_once_when_something_is_queued() -> None:
    store, began = open_store("memory:"), time.monotonic()

    async def solve(task: Any) -> float:
        return 1.0

    task = asyncio.create_task(Runner(store, solve, llm, RunnerSettings()).run())
    await asyncio.sleep(0.2)
    await store.add([Rollout(task=Task("1", None), mode="train")])
    cursor = 0
    while not (await store.list(status=["succeeded"]))[0]:
        cursor = await store.wait(cursor, timeout=5)
    assert time.monotonic() - began < 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"concurrency": 0}, "runner.concurrency is 0"),
        ({"timeout": 0}, "runner.timeout is 0"),
        ({"on_failure": "ignore"}, "'retry', 'drop' or 'penalise'"),
        ({"attempts": 0}, "runner.attempts is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RunnerSettings(**settings)


def test_an_agent_that_takes_neither_task_nor_task_and_llm_is_refused() -> None:
    def solve(task: Any, llm: Any, more: Any) -> float:
        return 1.0

    with pytest.raises(ConfigError, match=r"Expected \(task, llm\) or \(task\)"):
        takes_llm(solve)
    assert takes_llm(lambda task, llm: 1.0)
    assert not takes_llm(lambda task: 1.0)


async def test_an_agent_that_changes_its_task_does_not_change_that_of_its_group() -> None:
    seen: list[Any] = []
    task = {"left": [1, 2]}

    async def solve(task: Any) -> float:
        seen.append(task["left"].pop())
        return 1.0

    await run(solve, task, task)
    assert seen == [2, 2]


async def test_a_runner_keeps_its_wait_for_the_store_when_a_rollout_ends() -> None:
    class Waited(SQLiteStore):
        begun = cancelled = 0

        async def wait(self, after: int, *, timeout: float | None = None, status: Any = None) -> int:
            self.begun += 1
            try:
                return await super().wait(after, timeout=timeout, status=status)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

    store, ends = Waited(), [asyncio.Event() for _ in range(4)]
    await store.add([Rollout(task=Task(str(number), number), mode="train") for number in range(4)])

    async def solve(task: Any) -> float:
        await ends[task].wait()
        return 1.0

    runner = Runner(store, solve, llm, RunnerSettings(concurrency=4))
    running = asyncio.create_task(runner.run())
    for left in (3, 2, 1, 0):
        await asyncio.sleep(0.05)
        ends[left].set()
        async with asyncio.timeout(5):
            while runner.running > left:
                await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert store.begun > 2
    assert store.cancelled == 0
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
