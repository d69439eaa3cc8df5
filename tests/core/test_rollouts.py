"""`agl.rollout`: recording outside a training run, into a file that is there afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

import agentlightning as agl
from agentlightning.gateway import Gateway
from agentlightning.memory import MemoryStore
from agentlightning.recording import current
from agentlightning.rl.trajectory import trajectory
from agentlightning.stack import open_store
from agentlightning.store import AttemptRecords, RolloutState
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer


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
    store = MemoryStore()
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


def test_rewards_outside_a_rollout_say_where_they_belong() -> None:
    with pytest.raises(agl.LightningError, match=r"with agl.rollout\(task\)"):
        agl.reward(1.0)
