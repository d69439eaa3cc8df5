"""Runners on a real Ray cluster of two nodes on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.cli.runner import runner
from agentlightning.config.schema import RunnerSettings, build_config
from agentlightning.errors import ConfigError
from agentlightning.gateway import Gateway
from agentlightning.stores.common import open_store
from agentlightning.telemetry.store_app import store_app
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.training.metrics import read_metrics
from agentlightning.training.progress import Progress
from agentlightning.training.run_folder import RunFolder
from agentlightning.types import Attempt, Rollout, Sampling, Task
from agentlightning_ray.settings import RaySettings
from agentlightning_torch.testing import tiny_model

AGENT = """
import os, time
from openai import OpenAI

def solve(task, llm):
    client = OpenAI(base_url=llm.base_url, api_key=llm.api_key)
    answer = client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": task["text"]}], max_tokens=6)
    time.sleep(0.3)
    return sum(c.isalpha() for c in answer.choices[0].message.content or "") / 6
"""
TASKS = [{"id": str(n), "text": text} for n, text in enumerate(["abc", "xyz", "hello"])]


def table(**runner: Any) -> dict[str, Any]:
    return {"agent": "a:b", "tasks": "x.jsonl", "model": "m", "runner": runner}


def test_the_name_of_the_runner_chooses_its_settings() -> None:
    config = build_config(table(name="ray", workers=3, cpus=0.5, resources={"browser": 1}))
    assert config.runner == RaySettings(workers=3, cpus=0.5, resources={"browser": 1.0})
    assert config.runner.elsewhere
    assert type(build_config(table(workers=3)).runner) is RunnerSettings


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        ({"name": "rai"}, "Did you mean 'ray'"),
        ({"name": "ray", "cpu": 1}, "Did you mean 'cpus'"),
        ({"cpus": 1}, "cpus"),
        ({"name": "ray", "workers": 0}, "runner.workers is 0"),
        ({"name": "ray", "remote": True}, "both set"),
    ],
)
def test_a_wrong_setting_of_the_runner_is_named(runner: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(table(**runner))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="make test-ray installs Ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80_000_000})
    yield started
    ray.shutdown()
    started.shutdown()


class Killing(Progress):
    """Kills one of two nodes after some rollouts."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.nodes = [cluster.add_node(num_cpus=2, object_store_memory=80_000_000) for _ in range(2)]
        self.killed = False

    def rollouts(self, done: int, total: int, running: int, mean_reward: float | None = None, tokens: int | None = None) -> None:
        if done >= 4 and not self.killed:
            self.killed = True
            self.cluster.remove_node(self.nodes[0], allow_graceful=False)


@pytest.mark.skipif(sys.platform != "linux", reason="Ray's test cluster needs Linux")
def test_a_run_on_two_nodes_survives_the_death_of_one(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray_agent.py").write_text(AGENT)
    monkeypatch.syspath_prepend(tmp_path)
    progress = Killing(cluster)
    run = agl.train(
        "ray_agent:solve", tasks=TASKS, model=tiny_model(tmp_path / "tiny").path, folder=tmp_path, name="tiny", steps=2, tasks_per_step=2,
        algorithm=agl.LightningRL(group_size=6), trainer={"name": "torch", "lr": 1e-3}, progress=progress,
        runner={"name": "ray", "cluster": cluster.address, "workers": 2, "concurrency": 2, "lease": 3.0},
    )  # fmt: skip
    assert progress.killed
    assert [(row["unscored"], row["transitions"]) for row in read_metrics(run.folder)] == [(0, 12), (0, 12)]

    async def attempts() -> list[Attempt]:
        store = open_store(RunFolder.open(run.folder).store_address)
        states, _ = await store.list(limit=100)
        await store.close()
        assert all(state.status == "succeeded" for state in states)
        return [attempt for state in states for attempt in state.attempts]

    seen = asyncio.run(attempts())
    assert len({attempt.worker for attempt in seen}) >= 2
    assert not any(attempt.worker.endswith(f"-{os.getpid()}") for attempt in seen)
    assert any(attempt.status == "lost" for attempt in seen)


@pytest.mark.skipif(sys.platform != "linux", reason="Ray's test cluster needs Linux")
async def test_agl_runner_starts_actors_that_claim_from_a_named_store(cluster: Any, tmp_path: Path) -> None:
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    (tmp_path / "ray_agent.py").write_text(AGENT)
    make_tokenizer(tmp_path / "tokenizer")
    store = open_store("memory:")
    engine = ScriptedEngine(tmp_path / "tokenizer", lambda prompt, sampling: "abc")
    gateway = Gateway(store, engine, token="secret", extra_routes=store_app(store, "secret").routes)
    await gateway.start()
    await store.add([Rollout(task=Task(str(n), {"text": "hi"}), mode="train", sampling=Sampling()) for n in range(12)])
    address = gateway.base_url.removesuffix("/v1").replace("://", "://secret@")
    words = ["--ray", "--store", address, "--agent", "ray_agent:solve", "--concurrency", "2"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentlightning", "runner", *words, cwd=tmp_path, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT, env={**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    try:
        async with asyncio.timeout(240):  # starting Ray takes most of it
            while len((await store.list(status=["succeeded"]))[0]) < 12:
                assert process.returncode is None, (await process.communicate())[0].decode()
                await asyncio.sleep(0.2)
            states, _ = await store.list()
            workers = {attempt.worker for state in states for attempt in state.attempts}
            assert len(workers) == 2
            assert not any(worker.endswith(f"-{process.pid}") for worker in workers)
            process.send_signal(signal.SIGINT)
            output, _ = await process.communicate()
        assert process.returncode == 130, output.decode()
        assert b"2 actors on Ray" in output
        assert b"secret" not in output
    finally:
        if process.returncode is None:
            process.kill()
        await gateway.stop()
        await store.close()


@pytest.mark.skipif(sys.platform != "linux", reason="Ray's test cluster needs Linux")
def test_the_code_travels_without_checkpoints_and_a_file_that_is_too_large_is_named(cluster: Any, tmp_path: Path) -> None:
    from agentlightning_ray.runners import _connect
    from agentlightning_ray.settings import RaySettings

    settings = RaySettings(cluster=cluster.address, runtime_env={"working_dir": str(tmp_path)})
    run = RunFolder.create(tmp_path / "runs", "large")
    for folder, refused in ((tmp_path, True), (run.checkpoints, False)):
        large = folder / "model.safetensors"
        with large.open("wb") as file:
            file.truncate(600 << 20)  # above Ray's limit, and empty on the disk
        if refused:
            with pytest.raises(ConfigError, match=r"(?s)cannot ship runner\.runtime_env.*exceeds the maximum.*excludes"):
                _connect(settings)
            large.unlink()
        else:
            _connect(settings)


def test_workers_without_ray_are_refused() -> None:
    with pytest.raises(ConfigError, match="--workers is 3, but only --ray takes it"):
        runner(store="http://x@127.0.0.1:1", agent="a:b", workers=3)
