"""Worker processes for agents that block or crash: each is a `Runner` on the store's HTTP address.

A worker reads `module:function` and addresses as JSON from its standard input, never a pickle. It ends when that input closes, so no
worker outlives the process that started it. A worker that dies is replaced, and its attempts are returned at once. A worker is killed if an
attempt is far beyond its timeout: its event loop is blocked.
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
from agentlightning.errors import AgentError, ConfigError, LeaseLost, NotFound
from agentlightning.registry.registry import load_object, registry
from agentlightning.runner.isolation import NOTE
from agentlightning.runner.runner import Runner
from agentlightning.telemetry.logs import set_up_logs
from agentlightning.types import LLM, Attempt, AttemptStatus, Reward

log = logging.getLogger("agentlightning.runner.worker_pool")
RECYCLED = 75
"""Exit code of a worker with an abandoned agent, after its other rollouts ended."""


@dataclass(frozen=True, kw_only=True)
class WorkerOrder:
    """The settings of a worker process."""

    agent: str
    """`module:function`"""
    store: str
    """The store's HTTP address, with its token."""
    model: str
    base_url: str
    adapters: tuple[str, ...]
    models: tuple[str, ...]
    """Names of the model in the agent's code."""
    policies: tuple[str, ...] = ()
    """`LLM.policies`."""
    settings: RunnerSettings
    path: tuple[str, ...]
    """The parent's import path."""
    name: str


def reference_of(agent: str | Callable[..., Any]) -> str:
    """`module:function` of an agent. Raises `ConfigError` if worker processes cannot import it."""
    if isinstance(agent, str):
        return agent
    module, name = getattr(agent, "__module__", None), getattr(agent, "__qualname__", None)
    if module is None or name is None or "<" in name or module == "__main__":
        raise ConfigError(
            f"Worker processes cannot import the agent {name or agent!r}: it is a closure, a lambda, or in the main script. Put it at "
            "the top level of a module and pass 'module:function', or let it run in this process."
        )
    return f"{module}:{name}"


class WorkerAttempts:
    """The attempts of workers whose names begin with a prefix, from the store's feed of changes.

    A look costs as much as has changed since the last one, however many rollouts are stored or running.
    """

    PAGE = 1000
    """Changes read at once."""

    def __init__(self, store: LightningStore, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self._cursor: int | None = None
        self._lock = asyncio.Lock()
        self._claimed = set[str]()
        self._running: dict[str, dict[str, Attempt]] = {}

    async def start(self) -> None:
        """Begin before the first worker claims."""
        self._cursor = await self._store.wait(0, timeout=0)

    async def running(self, worker: str) -> list[Attempt]:
        """The running attempts of a worker."""
        await self._look()
        return [*self._running.get(worker, {}).values()]

    async def has_claimed(self, worker: str) -> bool:
        """Whether a worker has ever claimed a rollout."""
        await self._look()
        return worker in self._claimed

    def drop(self, attempt: Attempt) -> None:
        """Forget an attempt that is closed or deleted."""
        self._running.get(attempt.worker, {}).pop(attempt.id, None)

    async def _look(self) -> None:
        async with self._lock:
            while True:
                states, self._cursor = await self._store.list(after=self._cursor or 0, limit=self.PAGE, order="changed")
                for attempt in (attempt for state in states for attempt in state.attempts):
                    if attempt.worker.startswith(self._prefix):
                        self._keep(attempt)
                if len(states) < self.PAGE:
                    return

    def _keep(self, attempt: Attempt) -> None:
        self._claimed.add(attempt.worker)
        if attempt.status == "running":
            self._running.setdefault(attempt.worker, {})[attempt.id] = attempt
        else:
            self.drop(attempt)


class Workers:
    """Keeps `settings.workers` processes running until cancelled."""

    GRACE = 10.0
    """Seconds beyond the timeout, after which a worker counts as blocked."""
    CRASHES = 3
    """Workers in a row that may die before they claim a rollout."""

    def __init__(self, store: LightningStore, order: WorkerOrder, settings: RunnerSettings) -> None:
        self._store, self._order, self._settings = store, order, settings
        self._attempts = WorkerAttempts(store, f"{order.name}-")

    async def run(self) -> None:
        """Run until cancelled. Raises `AgentError` if workers die one after the other."""
        await self._attempts.start()
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
            lost = await self._give_back(order.name, "failed", f"Worker process {order.name} died with exit code {code}.")
            if code == RECYCLED and not lost:  # an agent may exit with the same code
                log.info("Worker process %s left an agent that did not stop. Starting another.", order.name)
                continue
            useless = 0 if await self._attempts.has_claimed(order.name) else useless + 1
            log.warning("Worker process %s died with exit code %s. Starting another.", order.name, code)
            if useless >= self.CRASHES:
                raise AgentError(
                    f"{useless} workers in a row died with exit code {code} before claiming a rollout. Read their output above."
                )

    async def _watch(self, name: str, process: Process) -> None:
        """Extend a living worker's leases: its agent may block the heartbeat. Kill it if an attempt is far too late."""
        beat, first_seen = 0.0, dict[str, float]()
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()  # the clock of `attempt.started` may jump
            due, running = now - beat > self._settings.lease / 3, await self._attempts.running(name)
            first_seen = {attempt.id: first_seen.get(attempt.id, now) for attempt in running}
            for attempt in running:
                if now - first_seen[attempt.id] > self._settings.timeout + self.GRACE:
                    late = f"The agent blocked its worker process beyond the timeout of {self._settings.timeout:g} s, so it was killed."
                    await self._give_back(name, "timed_out", late)
                    process.kill()
                    return
                if due:
                    await self._extend(attempt)
            beat = time.monotonic() if due else beat

    async def _extend(self, attempt: Attempt) -> None:
        try:
            await self._store.heartbeat(attempt.id, lease=self._settings.lease)
        except (LeaseLost, NotFound):
            self._attempts.drop(attempt)

    async def _give_back(self, name: str, status: AttemptStatus, why: str) -> int:
        """Close the running attempts of a worker. Returns their number. If there are several, none is known to be the cause."""
        running, policy = await self._attempts.running(name), self._settings.on_failure
        for attempt in running:
            with suppress(LeaseLost, NotFound):
                if len(running) > 1:
                    await self._store.finish(attempt.id, "cancelled", error=why + NOTE, retry=True)
                    continue
                if policy == "penalise":
                    penalty = Reward(attempt_id=attempt.id, value=self._settings.penalty, name="penalty", source="runner")
                    await self._store.record([penalty])
                await self._store.finish(attempt.id, status, error=why, retry=policy == "retry")
        return len(running)


async def _start(order: WorkerOrder) -> Process:
    process = await create_subprocess_exec(sys.executable, "-m", "agentlightning.runner.worker_pool", stdin=PIPE)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(order) + b"\n")
    await process.stdin.drain()
    return process


async def _end(process: Process) -> None:
    """Close its input to end it; kill it after 3 s."""
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


async def _work(order: WorkerOrder) -> int:
    """Run rollouts. Returns the exit code."""
    open_store = registry().load("stores", "http")
    for adapter in order.adapters:
        registry().load("adapters", adapter)(order.models)
    runner = Runner(
        open_store(order.store),
        load_object(order.agent),
        lambda attempt: LLM(order.model, order.base_url, attempt.key, order.policies),
        order.settings,
        name=order.name,
        recycled=True,
    )
    loop, task = asyncio.get_running_loop(), asyncio.create_task(runner.run())

    def until_input_closes() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(task.cancel)
        # an agent that blocks the loop delays the cancellation
        threading.Timer(2, os._exit, [0]).start()

    threading.Thread(target=until_input_closes, daemon=True).start()
    try:
        await task
    except asyncio.CancelledError:
        return 0
    return RECYCLED


def main() -> None:
    """Entry of a worker process."""
    import signal

    set_up_logs()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all workers; the parent decides
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerOrder)
    for entry in reversed(order.path):
        if entry not in sys.path:
            sys.path.insert(0, entry)
    code = asyncio.run(_work(order))
    os._exit(code)  # abandoned agent threads must not keep the process


if __name__ == "__main__":
    main()
