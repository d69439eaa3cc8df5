"""`agl.rollout`: recording outside a training run, into a file that is there afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

import agentlightning as agl
from agentlightning.capture.recorder import current
from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import ConfigError
from agentlightning.gateway import Gateway
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.runner import shared_stores
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer


async def listed(address: str) -> tuple[list[RolloutState], int]:
    store = open_store(address)
    try:
        return await store.list()
    finally:
        await store.close()


async def only(address: str) -> tuple[RolloutState, AttemptRecords]:
    store = open_store(address)
    try:
        [state], _ = await store.list()
        state, [records] = await store.read(state.rollout.id)
        return state, records
    finally:
        await store.close()


def test_a_block_is_recorded_into_the_store_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_STORE", f"sqlite:{tmp_path / 'a.db'}")
    with agl.rollout({"id": "q1", "question": "why?"}) as rollout:
        agl.note("thinking")
        agl.reward(0.5)
        rollout.reward(0.25, name="style", source="judge")
        assert current() is not None
    assert current() is None
    state, records = asyncio.run(only(f"sqlite:{tmp_path / 'a.db'}"))
    assert (state.status, state.rollout.mode, state.rollout.task.id) == ("succeeded", "production", "q1")
    assert [span.name for span in records.spans] == ["thinking"]
    assert [(reward.name, reward.value, reward.source) for reward in records.rewards] == [
        ("reward", 0.5, "agent"),
        ("style", 0.25, "judge"),
    ]


def test_without_an_environment_it_is_agl_db_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGL_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    with agl.rollout("task"):
        agl.reward(1.0)
    assert (tmp_path / "agl.db").exists()
    state, records = asyncio.run(only("sqlite:agl.db"))
    assert trajectory(state, [records]).reward == 1.0


def test_an_exception_goes_on_and_the_attempt_says_what_it_was(tmp_path: Path) -> None:
    address = f"sqlite:{tmp_path / 'a.db'}"

    def fail() -> None:
        with agl.rollout("task", store=address):
            agl.note("before")
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fail()
    state, records = asyncio.run(only(address))
    assert state.attempts[0].status == "failed"
    assert state.attempts[0].error == "ValueError: bad"
    assert [span.name for span in records.spans] == ["before"], "what was recorded before is kept"


async def test_the_async_form_and_a_gateway_over_the_same_store_record_the_tokens(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    store = open_store("memory:")
    gateway = Gateway(store, ScriptedEngine(tmp_path, ["hello"]))
    await gateway.start()
    try:
        async with agl.rollout("task", store=store, gateway=gateway.base_url, model="scripted") as rollout:
            llm = rollout.llm

            def call() -> Any:
                with OpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
                    return client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": "hi"}])

            answer = await asyncio.to_thread(call)
            assert answer.choices[0].message.content == "hello"
        _, [records] = await store.read(rollout.id)
        assert len(records.completions) == 1
        assert len(records.completions[0].response_ids) == len("hello") + 1
    finally:
        await gateway.stop()


def test_a_block_may_take_longer_than_its_lease() -> None:
    store = open_store("memory:")
    with agl.rollout("task", store=store, lease=0.3) as rollout:
        time.sleep(0.8)
        assert asyncio.run(store.claim("a runner, which collects expired leases", lease=60)) == []
        rollout.reward(1.0)
    state, _ = asyncio.run(store.read(rollout.id))
    assert state.status == "succeeded"


async def test_a_record_that_cannot_be_stored_fails_the_attempt_and_is_raised() -> None:
    store = open_store("memory:")

    async def full(records: Any) -> None:
        raise agl.LightningError("the disk is full")

    store.record = full  # type: ignore[method-assign]
    rollout = agl.rollout("task", store=store)
    with pytest.raises(agl.LightningError, match="disk is full"):
        async with rollout:
            agl.reward(1.0)
    state, _ = await store.read(rollout.id)
    assert state.attempts[0].status == "failed"
    assert "disk is full" in str(state.attempts[0].error)
    both = agl.rollout("task", store=store)

    async def fail() -> None:
        async with both:
            agl.reward(1.0)
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad") as error:
        await fail()
    assert "disk is full" in str(error.value.__notes__)


class Opened:
    """Counts the stores that `agl.rollout` opens and has not closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all = self.now = 0
        monkeypatch.setattr(shared_stores, "open_store", self._open)

    def _open(self, address: str) -> Any:
        store = open_store(address)
        self.all, self.now = self.all + 1, self.now + 1
        close = store.close

        async def closed() -> None:
            self.now -= 1
            await close()

        store.close = closed  # type: ignore[method-assign]
        return store


def test_blocks_of_many_threads_share_one_store_and_one_loop_and_the_last_closes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, address, together = Opened(monkeypatch), f"sqlite:{tmp_path / 'a.db'}", threading.Barrier(8)

    def work(number: int) -> int:
        with agl.rollout(f"task {number}", store=address):
            together.wait()
            agl.reward(number / 8)
            together.wait()
            return sum(thread.name == "agentlightning-rollout" for thread in threading.enumerate())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [1] * 8
    assert (opened.all, opened.now) == (1, 0)
    assert not any(thread.name == "agentlightning-rollout" for thread in threading.enumerate())
    with agl.rollout("later", store=address):
        assert (opened.all, opened.now) == (2, 1)
    states, _ = asyncio.run(listed(address))
    assert [state.status for state in states] == ["succeeded"] * 9


async def test_blocks_of_one_event_loop_share_a_store_for_each_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, together = Opened(monkeypatch), asyncio.Barrier(8)

    async def work(number: int) -> None:
        async with agl.rollout(f"task {number}", store=f"sqlite:{tmp_path / 'ab'[number % 2]}.db"):
            await together.wait()

    await asyncio.gather(*(work(number) for number in range(8)))
    assert (opened.all, opened.now) == (2, 0)
    for name in "ab":
        states, _ = await listed(f"sqlite:{tmp_path / name}.db")
        assert [state.status for state in states] == ["succeeded"] * 4


def test_a_block_that_cannot_begin_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)
    with agl.rollout("task", store=f"sqlite:{tmp_path / 'a.db'}") as first, pytest.raises(agl.LightningError):
        with agl.rollout(first._rollout.task.input, store="http://127.0.0.1:9"):
            pass
    assert opened.now == 0
    assert not any(thread.name == "agentlightning-rollout" for thread in threading.enumerate())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_opens_its_own(tmp_path: Path) -> None:
    address = f"sqlite:{tmp_path / 'a.db'}"
    with agl.rollout("parent", store=f"sqlite:{tmp_path / 'b.db'}"):
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)  # a block on its parent's thread would wait for ever
            try:
                with agl.rollout("child", store=address):
                    agl.reward(1.0)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    state, _ = asyncio.run(only(address))
    assert (state.rollout.task.input, state.status) == ("child", "succeeded")


@pytest.mark.parametrize("address", ["a.db", "./a.db", "{folder}/a:b.db", "sqlite:a.db", "here:a.db"])
async def test_a_path_is_a_store_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    if address.startswith("here:"):
        Path(address).touch()
    store = open_store(address.format(folder=tmp_path))
    await store.close()
    assert [path for path in tmp_path.iterdir() if path.name in ("a.db", "a:b.db", "here:a.db")]


def test_an_unknown_scheme_is_refused_with_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'mysql'.*Use one of .*sqlite"):
        open_store("mysql://host/db")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_none_is_refused_with_what_to_pass(tmp_path: Path) -> None:
    for store in (3, tmp_path / "agl.db"):
        with pytest.raises(ConfigError, match=r"store is .*\. Use a store's address"):
            agl.rollout("task", store=store)  # type: ignore[arg-type]


def test_rewards_outside_a_rollout_say_where_they_belong() -> None:
    with pytest.raises(agl.LightningError, match=r"with agl.rollout\(task\)"):
        agl.reward(1.0)
