"""`agl serve`: a model as an OpenAI endpoint beside the store that its calls are recorded in."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, AuthenticationError, OpenAI

import agentlightning as agl
from agentlightning.cli.main import main
from agentlightning.progress import Silent
from agentlightning.serving import what_to_serve
from agentlightning.stack import open_store
from agentlightning_torch.testing import tiny_model


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What `agl serve --model` says of itself, and the folder it runs in."""
    folder = tmp_path_factory.mktemp("serve")
    tiny_model(folder / "model")
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("agl")), "serve", "--model", str(folder / "model"), "--port", "0"],
        cwd=folder,
        env={**os.environ, "AGL_STORE": f"sqlite:{folder / 'served.db'}", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = {"folder": str(folder)}
    for line in process.stdout:
        if "Ctrl-C" in line:
            break
        name, _, value = line.strip().partition(" ")
        said[name] = value.strip()
    yield said
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    process.stdout.close()


async def test_a_call_with_the_token_is_answered_and_recorded_as_production(served: dict[str, str]) -> None:
    with OpenAI(base_url=served["base_url"], api_key=served["api_key"]) as client:
        answer = client.chat.completions.create(model=served["model"], messages=[{"role": "user", "content": "hi"}], max_tokens=5)
    store = open_store(served["store"])
    try:
        states, _ = await store.list(mode="production")
        _, [records] = await store.read(states[-1].rollout.id)
    finally:
        await store.close()
    assert records.calls[0].id == answer.system_fingerprint
    assert len(records.completions[0].response_ids) <= 5


def test_a_call_without_the_token_is_refused(served: dict[str, str]) -> None:
    with (
        OpenAI(base_url=served["base_url"], api_key="foreign", max_retries=0) as client,
        pytest.raises(AuthenticationError, match="three ways"),
    ):
        client.chat.completions.create(model=served["model"], messages=[{"role": "user", "content": "hi"}])


async def test_a_rollout_elsewhere_records_its_calls_there(served: dict[str, str]) -> None:
    def run() -> str:
        with agl.rollout("task", store=served["store"], model=served["model"]) as rollout:
            llm = rollout.llm
            with OpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
                client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": "hi"}], max_tokens=5)
            agl.reward(0.75)
        return rollout.id

    rollout_id = await asyncio.to_thread(run)
    store = open_store(f"sqlite:{served['folder']}/served.db")
    try:
        state, [records] = await store.read(rollout_id)
    finally:
        await store.close()
    assert state.status == "succeeded"
    assert len(records.completions) == 1
    assert records.rewards[0].value == 0.75


def test_a_port_in_use_is_named(served: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    port = served["base_url"].rsplit(":", 1)[1].removesuffix("/v1")
    monkeypatch.chdir(served["folder"])
    monkeypatch.setattr(sys, "argv", ["agl", "serve", "--model", served["folder"] + "/model", "--port", port])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 1
    assert f"another program may use port {port}" in " ".join(capsys.readouterr().err.split())


def test_a_run_is_served_with_the_version_that_was_trained_under_the_name_that_it_was_trained_as(tmp_path: Path) -> None:
    tiny_model(tmp_path / "tiny")

    async def solve(task: str, llm: agl.LLM) -> float:
        async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
            messages = [{"role": "user", "content": task}]
            answer = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=6)  # type: ignore[arg-type]
        return sum(each.isalpha() for each in answer.choices[0].message.content or "") / 6

    run = agl.train(solve, tasks=["a", "b"], model=str(tmp_path / "tiny"), folder=tmp_path, steps=2, tasks_per_step=2, progress=False)
    files, engine, policy = what_to_serve(run.folder, None, Silent())
    assert (files.name, files.path, engine["name"]) == ("tiny", str(run.policy), "torch")
    assert policy is not None
    assert (policy.version, policy.uri) == (run.result["policy_version"], f"file:{run.policy}")
