"""`agl.train` with an engine of another process: weights by file, a probe after each load, and a server that dies in the middle."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from openai import AsyncOpenAI
from transformers import AutoModelForCausalLM
from vllm_world import expected

import agentlightning as agl
from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ConfigError
from agentlightning.stores.common import open_store
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning_torch.testing import tiny_model

REAL = bool(os.environ.get("AGL_TEST_VLLM"))
pytestmark = pytest.mark.timeout(1800 if REAL else 240)
TASKS = [{"id": str(n), "text": text} for n, text in enumerate(["abc", "xyz", "hello", "12+3"])]


def server_of(folder: Path) -> tuple[int, int]:
    """The process and the port of the server that serves weights of a folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if "vllm.entrypoints.openai.api_server" in words and any(word.startswith(str(folder)) for word in words):
                return int(entry.name), int(words[words.index("--port") + 1])
    raise AssertionError("no server")


def agent(act: Callable[[], None]) -> Any:
    """Two turns; in the second step, at the ninth call, `act` does something to the server."""
    calls = 0

    async def two_turns(task: Any, llm: agl.LLM) -> float:
        nonlocal calls
        async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
            messages: list[Any] = [{"role": "user", "content": task["text"]}]
            for _ in range(2):
                calls += 1
                if calls == 16 + 9:
                    await asyncio.to_thread(act)
                answer = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=8)
                text = answer.choices[0].message.content or ""
                messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "more"}]
        return sum(each.isalpha() for each in text[:8]) / 8

    return two_turns


def train(files: ModelFiles, python: str, folder: Path, act: Callable[[], None]) -> agl.Run:
    torch.set_num_threads(1)
    return agl.train(
        agent(act),
        tasks=TASKS,
        model=files.path,
        folder=folder,
        steps=3,
        tasks_per_step=2,
        algorithm=agl.LightningRL(group_size=4),
        engine={"name": "vllm", "python": python},
        trainer={"name": "torch", "lr": 1e-3, "device": "cpu", "dtype": "float32"},
        progress=False,
    )


def test_a_server_whose_weights_somebody_changes_in_mid_step_gets_them_again_before_anything_is_trained(
    files: ModelFiles, python: str, tmp_path: Path
) -> None:
    other = tiny_model(tmp_path / "other", seed=1, hidden=128)

    def change() -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": other.path}}
        httpx.post(f"http://127.0.0.1:{server_of(tmp_path)[1]}/collective_rpc", json=body, timeout=60).raise_for_status()

    rows = read_metrics(train(files, python, tmp_path, change).folder)
    assert [row.get("rollouts_mismatched") for row in rows] == [None, 8, None]
    for row in rows:
        assert row["mismatch_abs"] < 1e-3
        assert row["weight_check_diff"] < 1e-4
        assert "alarm" not in row


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_of_a_step_costs_no_rollout(files: ModelFiles, python: str, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        killed.append(server_of(tmp_path)[0])
        os.kill(killed[0], signal.SIGKILL)

    run = train(files, python, tmp_path, kill)
    rows = read_metrics(run.folder)
    assert killed
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert (row["rollouts"], row["failed"], row["unscored"]) == (8, 0, 0)
        assert row["requests.completed"] == 16
        assert row["mismatch_abs"] < 1e-3
        assert "alarm" not in row
        assert row["weight_check_diff"] < 1e-4
    assert rows[-1]["policy_version"] == 3
    assert not (run.folder / "weights").exists()  # the checkpoint has what is to stay
    with pytest.raises(AssertionError, match="no server"):
        server_of(tmp_path)


async def completions(run: agl.Run) -> list[Any]:
    store = open_store(RunFolder(run.folder).store_address)
    try:
        states, _ = await store.list(limit=1000)
        records = [await store.records(state.winner.id) for state in states if state.winner is not None]
        return [completion for attempt in records for completion in attempt.completions]
    finally:
        await store.close()


@pytest.mark.slow
def test_two_policies_beside_the_frozen_model_train_and_come_back_with_a_server_that_is_killed_in_mid_step(
    files: ModelFiles, python: str, tmp_path: Path
) -> None:
    killed: list[int] = []
    calls = 0

    async def three_agents(task: Any, llm: agl.LLM) -> float:
        nonlocal calls
        text = task["text"]
        async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
            for name in llm.policies:
                calls += 1
                if calls == 24 + 13:
                    killed.append(server_of(Path(files.path))[0])
                    os.kill(killed[0], signal.SIGKILL)
                messages: list[Any] = [{"role": "user", "content": text}]
                answer = await client.chat.completions.create(model=name, messages=messages, max_tokens=8)
                text = answer.choices[0].message.content or ""
        return sum(letter.isalpha() for letter in text[:8]) / 8

    torch.set_num_threads(1)
    run = agl.train(
        three_agents,
        tasks=TASKS,
        model=files.path,
        folder=tmp_path,
        steps=2,
        tasks_per_step=2,
        policies={"writer": {}, "plain": {"train": False}, "editor": {"trainer": {"lora_rank": 8}}},
        algorithm=agl.LightningRL(group_size=4),
        engine={"name": "vllm", "python": python},
        trainer={"name": "torch", "train": "lora", "lora_rank": 4, "lr": 1e-2, "device": "cpu", "dtype": "float32"},
        progress=False,
    )
    rows = read_metrics(run.folder)
    assert killed
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert (row["rollouts"], row["failed"], row["requests.completed"]) == (8, 0, 24)
        for name in ("writer", "editor"):
            assert row[f"{name}/mismatch_abs"] < 1e-3
            assert row[f"{name}/weight_check_diff"] < 1e-4
            assert row[f"{name}/transitions"] == 8
    recorded = asyncio.run(completions(run))
    versions = {name: {int(v) for c in recorded if c.policy == name for v in c.versions} for name in ("writer", "editor", "plain")}
    assert versions == {"writer": {0, 1}, "editor": {0, 1}, "plain": {0}}
    assert run.result["policies"]["writer"]["version"] == run.result["policies"]["editor"]["version"] == 2
    base = AutoModelForCausalLM.from_pretrained(files.path).eval()
    for reply in (c for c in recorded if c.policy == "plain"):
        own = expected(base, reply.prompt_ids.tolist(), reply.response_ids.tolist())
        np.testing.assert_allclose(reply.logprobs, own, atol=1e-3)


def test_a_missing_vllm_is_named_before_anybody_looks_for_the_model(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text("#!/bin/sh\necho '{}'\n")
    bare.chmod(0o755)
    with pytest.raises(ConfigError, match=r"has no vLLM\..*install"):
        agl.train(agent(lambda: None), tasks=TASKS, model="no-such-model", folder=tmp_path, engine={"name": "vllm", "python": str(bare)})


@pytest.mark.skipif(not REAL, reason="make test-vllm: SmolLM2 on vLLM itself")
def test_three_steps_of_the_demo_train_on_vllm(python: str, tmp_path: Path) -> None:
    from agentlightning.config.schema import load_config
    from agentlightning.training.train import train_config
    from agentlightning_benchmarks.demo.command import CONFIG

    config = load_config(CONFIG)
    engine = {"name": "vllm", "python": python, "context": 1024}
    trainer = {**config.trainer, "dtype": "float32"}
    run = train_config(replace(config, steps=3, folder=str(tmp_path), engine=engine, trainer=trainer), progress=False)
    rows = read_metrics(run.folder)
    print(*({key: row[key] for key in sorted(row) if key in SHOWN} for row in rows), sep="\n")
    steps = [row for row in rows if row["step"]]
    assert len(steps) == 3
    for row in steps:
        assert row["failed"] == 0
        assert row["weight_check_diff"] < 1e-3
        assert row["mismatch_abs"] < 1e-3
    assert steps[-1]["reward"] > rows[0]["eval.sampled"]


SHOWN = ("step", "reward", "eval.sampled", "eval.greedy", "weight_check_diff", "mismatch_abs", "mismatch_abs_max", "seconds")
