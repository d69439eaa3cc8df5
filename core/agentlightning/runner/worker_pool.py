"""Worker processes for agents that block or crash: each is a `Runner` over the store's HTTP address.

A worker is told `module:function` and addresses as JSON on its standard input, never a pickle, and ends when that input closes, so no
worker outlives the process that started it. One that dies is replaced, and its attempts are given back at once; one whose attempt is
far beyond its timeout (its event loop is blocked) is killed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import sys
import threading
import time
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from agentlightning.config.schema import RunnerSettings
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import AgentError, ConfigError, LeaseLost
from agentlightning.registry.registry import load_object, registry
from agentlightning.runner.runner import Runner
from agentlightning.types import LLM, Attempt, AttemptStatus, Reward

log = logging.getLogger("agentlightning.runner.worker_pool")


@dataclass(frozen=True, kw_only=True)
class WorkerOrder:
    """What a worker process is told."""

    agent: str
    """`module:function`"""
    store: str
    """The store's HTTP address, with its token."""
    model: str
    base_url: str
    adapters: tuple[str, ...]
    models: tuple[str, ...]
    """Names that stand for the model."""
    settings: dict[str, Any]
    path: tuple[str, ...]
    """Import path of the parent, so that the same modules are found."""
    name: str


def reference_of(agent: str | Callable[..., Any]) -> str:
    """`module:function` of an agent that worker processes can import; `ConfigError` for one that they cannot."""
    if isinstance(agent, str):
        return agent
    module, name = getattr(agent, "__module__", None), getattr(agent, "__qualname__", None)
    if module is None or name is None or "<" in name or module == "__main__":
        raise ConfigError(
            f"the agent {name or agent!r} cannot be imported by worker processes (it is a closure, a lambda, or lives in the script that "
            "was started); put it at the top level of a module and pass 'module:function', or use runner.workers = 0"
        )
    return f"{module}:{name}"


class Workers:
    """Keeps `settings.workers` processes running until cancelled."""

    GRACE = 10.0
    """Seconds beyond the timeout after which a worker counts as blocked."""
    CRASHES = 3
    """Workers in a row that died without having claimed a rollout, after which starting them is given up."""

    def __init__(self, store: LightningStore, order: WorkerOrder, settings: RunnerSettings) -> None:
        self._store, self._order, self._settings = store, order, settings

    async def run(self) -> None:
        """Raises what made starting workers pointless."""
        keepers = [asyncio.create_task(self._keep(number)) for number in range(self._settings.workers)]
        try:
            done, _ = await asyncio.wait(keepers, return_when=asyncio.FIRST_COMPLETED)
            for keeper in done:
                keeper.result()
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)

    async def _keep(self, number: int) -> None:
        useless = generation = 0
        while True:
            generation += 1
            order = dataclasses.replace(self._order, name=f"{self._order.name}-{number}.{generation}")
            process = await _start(order)
            watch = asyncio.create_task(self._watch(order.name, process))
            ended = asyncio.create_task(process.wait())
            try:
                await asyncio.wait([ended, watch], return_when=asyncio.FIRST_COMPLETED)
                if watch.done():
                    watch.result()  # the store failed; or the process was killed
                code = await ended
            finally:
                watch.cancel()
                await _end(process)
            await self._give_back(order.name, "failed", f"worker process {order.name} died with exit code {code}")
            useless = 0 if await self._claimed(order.name) else useless + 1
            log.warning("worker process %s died with exit code %s; starting another", order.name, code)
            if useless >= self.CRASHES:
                raise AgentError(
                    f"{useless} worker processes in a row died (exit code {code}) before claiming a rollout; their output above says why"
                )

    async def _watch(self, name: str, process: Process) -> None:
        """Keep the leases of a living worker, whose agent may block its heartbeat, and kill it when an attempt is far too late."""
        beat = 0.0
        while True:
            await asyncio.sleep(1)
            now, due = time.time(), time.monotonic() - beat > self._settings.lease / 3
            for attempt in await self._running(name):
                if now - attempt.started > self._settings.timeout + self.GRACE:
                    late = f"the agent blocked its worker process beyond the timeout of {self._settings.timeout:g} s and was killed"
                    await self._give_back(name, "timed_out", late)
                    process.kill()
                    return
                if due:
                    with suppress(LeaseLost):
                        await self._store.heartbeat(attempt.id, lease=self._settings.lease)
            beat = time.monotonic() if due else beat

    async def _running(self, name: str) -> list[Attempt]:
        states, _ = await self._store.list(status=["running"], limit=100_000)
        return [state.attempts[-1] for state in states if state.attempts[-1].worker == name]

    async def _claimed(self, name: str) -> bool:
        states, _ = await self._store.list(limit=1_000_000)
        return any(attempt.worker == name for state in states for attempt in state.attempts)

    async def _give_back(self, name: str, status: AttemptStatus, why: str) -> None:
        for attempt in await self._running(name):
            with suppress(LeaseLost):
                if self._settings.on_failure == "penalise":
                    penalty = Reward(attempt_id=attempt.id, value=self._settings.penalty, name="penalty", source="runner")
                    await self._store.record([penalty])
                await self._store.finish(attempt.id, status, error=why, retry=self._settings.on_failure == "retry")


async def _start(order: WorkerOrder) -> Process:
    process = await create_subprocess_exec(sys.executable, "-m", "agentlightning.runner.worker_pool", stdin=PIPE)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(order) + b"\n")
    await process.stdin.drain()
    return process


async def _end(process: Process) -> None:
    """Close its input, which asks it to end; then insist."""
    if process.returncode is not None:
        return
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(3):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _work(order: WorkerOrder) -> None:
    open_store = registry().load("stores", "http")
    settings = RunnerSettings(**order.settings)
    for adapter in order.adapters:
        registry().load("adapters", adapter)(order.models)
    runner = Runner(
        open_store(order.store),
        load_object(order.agent),
        lambda attempt: LLM(order.model, order.base_url, attempt.key),
        settings,
        name=order.name,
    )
    loop, task = asyncio.get_running_loop(), asyncio.create_task(runner.run())

    def until_input_closes() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(task.cancel)
        # An agent that blocks the loop cannot hear it.
        threading.Timer(2, os._exit, [0]).start()

    threading.Thread(target=until_input_closes, daemon=True).start()
    try:
        await task
    except asyncio.CancelledError:
        return


def main() -> None:
    """Entry of a worker process."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerOrder)
    for entry in reversed(order.path):
        if entry not in sys.path:
            sys.path.insert(0, entry)
    asyncio.run(_work(order))
    os._exit(0)  # abandoned agent threads must not keep the process


if __name__ == "__main__":
    main()
