"""A store, a gateway and runners in processes of their own: each is killed, or the network between them fails."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fault_account import account, all_states
from fault_house import TOKEN, House, Process, free_port, wait_until
from fault_proxy import FAULTS, FaultProxy

from agentlightning.stores.common import ENDED, open_store
from agentlightning.types import Rollout, Sampling, Task

Report = Callable[[dict[str, object]], None]


class Service:
    """`agl store serve`, `agl serve` and `agl runner` on one store."""

    def __init__(self, house: House, model: str) -> None:
        self.house, self.model = house, model
        self.path = str(house.folder / "agl.db")
        self.store_port, self.gateway_port = free_port(), free_port()
        self.store = house.serve_store(self.path, self.store_port)
        self.gateway = self.serve_model()

    def address(self, port: int = 0) -> str:
        return f"http://{TOKEN}@127.0.0.1:{port or self.store_port}"

    def serve_store(self) -> Process:
        return self.house.serve_store(self.path, self.store_port)

    def serve_model(self) -> Process:
        return self.house.serve_model(self.model, self.address(), self.gateway_port)

    def runner(self, port: int = 0) -> Process:
        gateway = f"http://127.0.0.1:{self.gateway_port}"
        return self.house.runner(self.address(port), "--gateway", gateway, "--concurrency", 4)

    def add(self, count: int) -> None:
        sampling = Sampling(max_tokens=6)
        rollouts = [
            Rollout(task=Task(f"{n // 4}", {"text": "ab"}), mode="train", group=f"g{n // 4}", index=n % 4, step=n // 8, sampling=sampling)
            for n in range(count)
        ]
        _with_store(self.path, lambda store: store.add(rollouts))

    def ended(self) -> int:
        states = _with_store(self.path, all_states)
        return sum(state.status in ENDED for state in states)

    def statuses(self) -> set[str]:
        return {state.status for state in _with_store(self.path, all_states)}

    def close(self) -> None:
        for process in self.house.started:
            process.kill()

    def trained(self) -> str:
        """Train on the rollouts of this store, and say how far that came."""
        (self.house.folder / "learn.toml").write_text(
            f'model = "{self.model}"\nsteps = 1\ntasks_per_step = 2\nname = "after"\n[replay]\nstore = "{self.path}"\nmode = "train"\n'
            '[algorithm]\nname = "lightning"\ngroup_size = 4\nadvantage = "reinforce_pp"\n'
        )
        learner = self.house.agl("train", "learn.toml")
        assert learner.wait() == 0, learner.output
        return "a step on its rollouts"


def _with_store(path: str, work: Callable[[Any], Any]) -> Any:
    async def scenario() -> Any:
        store = open_store(path)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(scenario())


@pytest.fixture
def service(house: House, model: str) -> Service:
    return Service(house, model)


def finish(service: Service, count: int, fault: str, times: int, full: bool) -> dict[str, object]:
    """Wait for all rollouts, end the processes, and compare."""
    wait_until(lambda: service.ended() == count, "end of all rollouts", 200)
    assert service.statuses() == {"succeeded"}
    service.close()
    row = account(fault, times, service.path, service.house.acknowledged())
    return {**row, "training": service.trained() if full else "-"}


def test_a_killed_gateway_costs_no_record_and_no_rollout(service: Service, full: bool, report: Report) -> None:
    kills, count = (3, 96) if full else (1, 24)
    service.add(count)
    for _ in range(2):
        service.runner()
    for kill in range(kills):
        wait_until(lambda kill=kill: service.ended() >= count * (kill + 1) // (kills + 2), "progress")
        service.gateway.kill()
        time.sleep(kill)
        service.gateway = service.serve_model()
    report(finish(service, count, "kill -9 of the gateway", kills, full))


@pytest.mark.slow
def test_a_killed_store_server_costs_no_record_and_no_rollout(service: Service, full: bool, report: Report) -> None:
    kills, count = (8, 96) if full else (2, 24)
    service.add(count)
    for _ in range(2):
        service.runner()
    for kill in range(kills):
        wait_until(lambda kill=kill: service.ended() >= count * (kill + 1) // (kills + 2), "progress")
        service.store.kill()
        time.sleep(0.5)
        service.store = service.serve_store()
    report(finish(service, count, "kill -9 of the store's server", kills, full))


@contextmanager
def proxied(port: int, **settings: Any) -> Iterator[FaultProxy]:
    """A proxy before a server on this port, in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    proxy = FaultProxy(port, **settings)
    asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy.__aexit__(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def test_a_network_that_stalls_cuts_and_delivers_twice_costs_no_record(service: Service, full: bool, report: Report) -> None:
    count = 96 if full else 24
    with proxied(service.store_port, share=0.3) as proxy:
        service.add(count)
        for _ in range(2):
            service.runner(proxy.port)
        wait_until(lambda: service.ended() == count, "end of all rollouts", 200)
        row = finish(service, count, "network stalls, cuts, delivers twice", proxy.faults.total(), full)
    assert set(proxy.faults) == set(FAULTS)
    report(row)


@pytest.mark.slow
def test_two_hundred_runners_share_a_store_and_those_that_die_cost_no_rollout(service: Service, full: bool, report: Report) -> None:
    count, kills = (200, 20) if full else (40, 0)
    rollouts = 2 * count
    service.add(rollouts)
    script = Path(__file__).with_name("many_runners.py")
    many = service.house.start([str(script), str(count), service.address(), f"http://127.0.0.1:{service.gateway_port}"], PYTHONPATH=".")
    wait_until(lambda: service.ended() >= rollouts // 5, "progress")
    pids = [int(line.split()[1]) for line in many.output.splitlines() if line.startswith("runner")]
    assert len(pids) == count
    for pid in pids[:kills]:
        os.kill(pid, signal.SIGKILL)
    try:
        report(finish(service, rollouts, f"kill -9 of runners, {count} on one store", kills, full))
    finally:
        for pid in pids[kills:]:
            os.kill(pid, signal.SIGKILL)
