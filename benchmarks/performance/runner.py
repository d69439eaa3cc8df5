"""Measures what the runner adds to an empty rollout, as CPU time, and the memory of many rollouts in flight.

    python benchmarks/performance/runner.py [--rollouts 2000] [--flying 1000]

The reference is the store alone: the same claims and ends on `memory:` without a runner, in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import time
from collections.abc import Awaitable, Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from agentlightning.config.schema import RunnerSettings
from agentlightning.contracts.store import LightningStore
from agentlightning.runner.runner import Runner
from agentlightning.stores.common import open_store
from agentlightning.types import LLM, Rollout, Task


async def empty(task: Any) -> float:
    """An agent that does nothing."""
    return 1.0


def empty_in_a_thread(task: Any) -> float:
    """The same, synchronous."""
    return 1.0


async def cost(count: int, work: Callable[[LightningStore], Awaitable[None]]) -> tuple[float, float]:
    """Return the milliseconds of CPU time and of wall time for each rollout."""
    store = open_store("memory:")
    await store.add([Rollout(task=Task(str(n), None), mode="train") for n in range(count)])
    cpu, wall = time.process_time(), time.perf_counter()
    await work(store)
    result = (time.process_time() - cpu) / count * 1000, (time.perf_counter() - wall) / count * 1000
    await store.close()
    return result


async def store_alone(store: LightningStore) -> None:
    while claimed := await store.claim("reference", lease=60, limit=32):
        for _, attempt in claimed:
            await store.finish(attempt.id, "succeeded")


def with_runner(agent: Any, **settings: Any) -> Callable[[LightningStore], Awaitable[None]]:
    async def work(store: LightningStore) -> None:
        runner = Runner(store, agent, lambda attempt: LLM("m", "http://127.0.0.1:1/v1", attempt.key), RunnerSettings(**settings))
        running, cursor = asyncio.create_task(runner.run()), 0
        while (await store.list(status=["queued", "running"], limit=1))[0]:
            cursor = await store.wait(cursor, timeout=1)
            await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    return work


async def memory(flying: int) -> float:
    """Return the MB that so many waiting rollouts add to the process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def waiting(task: Any) -> float:
        await asyncio.sleep(2)
        return 1.0

    await cost(flying, with_runner(waiting, concurrency=flying))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=2000)
    parser.add_argument("--flying", type=int, default=1000)
    arguments = parser.parse_args()
    asyncio.run(cost(100, with_runner(empty)))  # imports
    added = asyncio.run(memory(arguments.flying))
    reference, reference_wall = asyncio.run(cost(arguments.rollouts, store_alone))
    table = Table("rollout", "CPU ms", "wall ms", "CPU / store alone", "runner adds, CPU ms", box=None)
    table.add_row("store alone", f"{reference:.3f}", f"{reference_wall:.3f}", "1.0", "")
    for name, agent in (("async agent", empty), ("agent in a thread", empty_in_a_thread)):
        cpu, wall = asyncio.run(cost(arguments.rollouts, with_runner(agent)))
        table.add_row(name, f"{cpu:.3f}", f"{wall:.3f}", f"{cpu / reference:.1f}", f"{cpu - reference:.3f} (bound 1)")
    Console(width=120).print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{arguments.flying} rollouts in flight add {added:.0f} MB; the process has {peak:.0f} MB at its peak (bound 300)")


if __name__ == "__main__":
    main()
