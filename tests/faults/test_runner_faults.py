"""Worker processes survive their agents: one that kills its process, one that never stops, and one that forks and hangs."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from agentlightning.config.schema import RunnerSettings
from agentlightning.contracts.store import RolloutState
from agentlightning.runner.isolation import GIVEN_BACK
from agentlightning.runner.program import CommandAgent
from agentlightning.runner.runner import Runner
from agentlightning.runner.worker_pool import WorkerOrder, Workers
from agentlightning.stores.common import open_store
from agentlightning.telemetry.store_app import store_app
from agentlightning.types import LLM, Rollout, Task

AGENT = """
import asyncio, os, signal

async def solve(task):
    if task == "poison":
        await asyncio.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "quitter":
        await asyncio.sleep(0.5)
        os._exit(75)
    if task == "patient":
        await asyncio.sleep(1.5)
    while task == "stubborn":
        try:
            await asyncio.sleep(60)
        except:
            pass
    return float(os.getpid())
"""


async def work(tmp_path: Path, tasks: list[str], *, concurrency: int = 1, attempts: int = 3, **settings: Any) -> list[RolloutState]:
    """Run the tasks in worker processes, over HTTP, until all have ended."""
    (tmp_path / "faulty_agent.py").write_text(AGENT)
    store = open_store("memory:")
    await store.add([Rollout(task=Task(f"{n}", task), mode="train", max_attempts=attempts) for n, task in enumerate(tasks)])
    server = uvicorn.Server(uvicorn.Config(store_app(store, "secret"), port=0, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    runner = RunnerSettings(workers=1, concurrency=concurrency, **settings)
    order = WorkerOrder(
        agent="faulty_agent:solve", store=f"http://secret@127.0.0.1:{port}", model="m", base_url="http://127.0.0.1:1/v1", adapters=(),
        models=(), policies=(), settings=runner, path=(str(tmp_path), *sys.path), name="worker",
    )  # fmt: skip
    workers = asyncio.create_task(Workers(store, order, runner).run())
    try:
        async with asyncio.timeout(120):
            while len(states := (await store.list(status=["succeeded", "failed"]))[0]) < len(tasks):
                assert not workers.done(), workers.exception()
                await asyncio.sleep(0.1)
    finally:
        workers.cancel()
        await asyncio.gather(workers, return_exceptions=True)
        server.should_exit = True
        await serving
    return states


@pytest.mark.slow
async def test_a_task_that_kills_its_worker_fails_after_its_attempts_and_the_rest_goes_on(tmp_path: Path) -> None:
    states = await work(tmp_path, ["good", "poison", "good", "good"])
    assert [state.status for state in states] == ["succeeded", "failed", "succeeded", "succeeded"]
    assert len(states[1].attempts) == 3
    assert "died with exit code -9" in str(states[1].attempts[-1].error)


async def test_rollouts_that_share_a_worker_with_a_task_that_kills_it_lose_no_attempt(tmp_path: Path) -> None:
    tasks = ["patient", "poison", "patient", "patient", "good"]
    states = await work(tmp_path, tasks, concurrency=4, attempts=1)
    assert [state.status for state in states] == ["succeeded", "failed", "succeeded", "succeeded", "succeeded"]
    assert [attempt.status for attempt in states[1].attempts if attempt.error != GIVEN_BACK] == ["cancelled", "failed"]
    for state in (states[0], states[2], states[3]):
        assert {attempt.status for attempt in state.attempts} == {"cancelled", "succeeded"}
        assert "runs alone next time" in str(state.attempts[0].error)


async def test_a_worker_that_exits_with_the_code_of_a_recycled_one_loses_no_attempt(tmp_path: Path) -> None:
    states = await work(tmp_path, ["quitter", "patient", "good"], concurrency=2)
    assert [state.status for state in states] == ["failed", "succeeded", "succeeded"]
    assert "died with exit code 75" in str(states[0].attempts[-1].error)
    assert [attempt.status for attempt in states[0].attempts].count("failed") == 3
    assert "failed" not in {attempt.status for attempt in states[1].attempts}


@pytest.mark.slow
async def test_a_worker_with_an_abandoned_agent_is_replaced(tmp_path: Path) -> None:
    states = await work(tmp_path, ["good", "stubborn", "good"], timeout=0.5, on_failure="drop")
    assert [state.status for state in states] == ["succeeded", "failed", "succeeded"]
    assert [state.attempts[0].status for state in states] == ["succeeded", "timed_out", "succeeded"]
    assert states[0].attempts[0].worker != states[2].attempts[0].worker


async def test_a_cancelled_program_that_forks_and_hangs_leaves_no_process(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    line = f'sh -c \'trap "" TERM; (setsid sh -c "echo \\$\\$ >> {pids}; sleep 300; true") & echo $$ >> {pids}; sleep 300; true\''
    store = open_store("memory:")
    await store.add([Rollout(task=Task("1", None), mode="train")])
    with CommandAgent(line) as agent:
        settings = RunnerSettings(lease=600.0)
        runner = asyncio.create_task(Runner(store, agent, lambda attempt: LLM("m", "http://127.0.0.1:1/v1", attempt.key), settings).run())
        async with asyncio.timeout(20):
            while not pids.exists() or len(pids.read_text().split()) < 2:
                await asyncio.sleep(0.05)
        [state], _ = await store.list()
        await store.cancel([state.rollout.id])
        until = time.monotonic() + 10
        while (alive := [pid for pid in pids.read_text().split() if os.path.exists(f"/proc/{pid}")]) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        assert alive == []
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)
