"""Runners in processes of their own, as on other machines: `agl runner`, `agl store serve`, and `runner.remote`."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from letters import TASKS
from test_training import rows, settings

import agentlightning as agl
from agentlightning.config.schema import Config, RunnerSettings
from agentlightning.errors import ConfigError, StoreError
from agentlightning.gateway import Gateway
from agentlightning.runner.remote import RemoteRunner, RunnerOrder, order_route, run_remote
from agentlightning.stores.common import open_store
from agentlightning.stores.http_client import open_http
from agentlightning.stores.http_server import StoreServer
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.training.progress import Progress
from agentlightning.training.remote_runners import runner_command, watch_runners
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.services import remote_runner
from agentlightning.types import Rollout, Sampling, Task

AGENT = """
import time
from openai import OpenAI

def solve(task, llm):
    client = OpenAI(base_url=llm.base_url, api_key=llm.api_key)
    answer = client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": task["text"]}], max_tokens=6)
    time.sleep(0.2)
    return sum(c.isalpha() for c in answer.choices[0].message.content or "") / 6
"""


class Processes:
    """Commands of `agl` in a folder with the agent."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.all = folder, list[subprocess.Popen[str]]()
        (folder / "their_agent.py").write_text(AGENT)

    def agl(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "agentlightning", *words], cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )  # fmt: skip
        self.all.append(process)
        return process


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    yield started
    for process in started.all:
        process.kill()
        process.wait()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The output of a process up to the line with this text."""
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if text in line:
            return output
    raise AssertionError(f"{text!r} is not in the output:\n{output}")


class Starting(Progress):
    """Starts runners with the command that the run prints, and ends one without warning after some rollouts."""

    def __init__(self, start: Callable[[list[str]], subprocess.Popen[str]]) -> None:
        self.start, self.runners, self.messages = start, list[subprocess.Popen[str]](), list[str]()

    def message(self, text: str) -> None:
        self.messages.append(text)
        if text.startswith("Waiting for runners"):
            words = shlex.split(text.splitlines()[1])
            self.runners = [self.start(words[1:]) for _ in range(2)]

    def rollouts(self, done: int, total: int, running: int, mean_reward: float | None = None, tokens: int | None = None) -> None:
        if done >= 4 and self.runners[0].poll() is None:
            self.runners[0].kill()


def test_a_run_learns_from_runners_elsewhere_and_one_that_dies_costs_no_rollout(
    model: str, tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    progress = Starting(lambda words: processes.agl(*words))
    remote = {"remote": True, "concurrency": 2, "lease": 2.0}
    arguments = settings(model, tmp_path, steps=2, runner=remote, progress=progress)
    run = agl.train("their_agent:solve", tasks=TASKS, **arguments)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert progress.runners[0].returncode == -signal.SIGKILL
    assert [row["unscored"] for row in rows(run)] == [0, 0]
    assert [row["transitions"] for row in rows(run)] == [8, 8]

    async def attempts() -> tuple[set[str], int]:
        store = open_store(RunFolder.open(run.folder).store_address)
        states, _ = await store.list()
        for state in states:
            records = await store.records(state.winner.id)  # type: ignore[union-attr]
            assert len(records.completions) == len(records.rewards) == 1
        await store.close()
        return {attempt.worker for state in states for attempt in state.attempts}, max(len(state.attempts) for state in states)

    workers, most = asyncio.run(attempts())
    assert len(workers) == 2
    assert most <= 2  # whether the killed runner held a rollout is chance; in tests/faults it does
    assert any(message == "A runner asks for work." for message in progress.messages)


@pytest.mark.slow
def test_a_runner_outlives_its_store_server_and_no_record_is_lost(tmp_path: Path, processes: Processes) -> None:
    path, count = tmp_path / "agl.db", 24

    def serve(port: int) -> tuple[subprocess.Popen[str], str]:
        process = processes.agl("store", "serve", str(path), "--port", str(port), AGL_TOKEN="secret")
        address = read_until(process, "http://").split()[1]
        read_until(process, "Ctrl-C")
        return process, address

    server, address = serve(0)
    port = int(address.rpartition(":")[2])

    async def scenario() -> None:
        nonlocal server
        ids = make_tokenizer(tmp_path / "tokenizer").encode("abc")
        store = open_store(str(path))
        gateway = Gateway(store, ScriptedEngine(tmp_path / "tokenizer", lambda *_: ids))
        await gateway.start()
        sampling = Sampling(max_tokens=8)
        await store.add([Rollout(task=Task(str(i), {"text": "a"}), mode="train", sampling=sampling) for i in range(count)])
        runner = processes.agl(
            "runner", "--store", address, "--gateway", gateway.base_url, "--model", "scripted", "--agent", "their_agent:solve",
            "--concurrency", "4",
        )  # fmt: skip
        await asyncio.to_thread(read_until, runner, "Waiting for rollouts")
        await until(lambda states: sum(state.status == "succeeded" for state in states) >= 4)
        server.kill()
        server.wait()
        await asyncio.sleep(1)
        server, _ = await asyncio.to_thread(serve, port)
        await until(lambda states: all(state.status == "succeeded" for state in states))
        states, _ = await store.list(limit=1000)
        for state in states:
            assert state.winner is not None
            records = await store.records(state.winner.id)
            assert [len(records.calls), len(records.completions), len(records.rewards)] == [1, 1, 1]
        runner.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(runner.wait, 20) == 130
        await gateway.stop()
        await store.close()

    async def until(done: Callable[[Any], bool]) -> None:
        store, deadline = open_store(str(path)), time.monotonic() + 90  # an unlucky claim waits for its lease of 60 s
        while True:
            states, _ = await store.list(limit=1000)
            if done(states):
                await store.close()
                return
            assert time.monotonic() < deadline, [state.status for state in states]
            await asyncio.sleep(0.05)

    asyncio.run(scenario())


async def test_a_claim_that_is_repeated_after_the_server_was_killed_returns_the_same_attempt(tmp_path: Path, processes: Processes) -> None:
    store = open_store(str(tmp_path / "agl.db"))
    await store.add([Rollout(task=Task(str(i), {}), mode="train") for i in range(3)])
    claims: list[Any] = []
    for _ in range(2):
        server = processes.agl("store", "serve", str(tmp_path / "agl.db"), "--port", "0", AGL_TOKEN="secret")
        client = open_http((await asyncio.to_thread(read_until, server, "http://")).split()[1])
        claims.append(await client.claim("w", lease=60, limit=2, request="the same"))
        await client.close()
        server.kill()
        server.wait()
    assert claims[0] == claims[1]
    assert [state.status for state in (await store.list())[0]] == ["running", "running", "queued"]
    await store.close()


def test_ctrl_c_gives_the_running_rollouts_back(tmp_path: Path, processes: Processes) -> None:
    async def scenario() -> None:
        path = tmp_path / "agl.db"
        store, ids = open_store(str(path)), make_tokenizer(tmp_path / "tokenizer").encode("abc")
        server = StoreServer(store, "secret")
        gateway = Gateway(store, ScriptedEngine(tmp_path / "tokenizer", lambda *_: ids, delay=60), extra_routes=server.routes)
        await gateway.start()
        await store.add([Rollout(task=Task("a", {"text": "a"}), mode="train", sampling=Sampling(max_tokens=8))])
        address = gateway.base_url.removesuffix("/v1").replace("://", "://secret@")
        runner = processes.agl("runner", "--store", address, "--agent", "their_agent:solve")
        output = await asyncio.to_thread(read_until, runner, "Waiting for rollouts")
        assert "scripted" in output
        while (await store.list())[0][0].status != "running":
            await asyncio.sleep(0.05)
        runner.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(runner.wait, 20) == 130
        [state], _ = await store.list()
        assert state.status == "queued"
        assert state.attempts[0].status == "cancelled"
        assert runner.stdout is not None
        assert "back in the queue" in runner.stdout.read()
        await gateway.stop()
        await store.close()

    asyncio.run(scenario())


async def test_a_runner_with_a_wrong_token_is_told_so(tmp_path: Path) -> None:
    store = open_store("memory:")
    make_tokenizer(tmp_path)
    gateway = Gateway(store, ScriptedEngine(tmp_path, [[1]]), extra_routes=StoreServer(store, "secret").routes)
    await gateway.start()
    address = gateway.base_url.removesuffix("/v1").replace("://", "://wrong@")
    with pytest.raises(StoreError, match="refused the token"):
        await run_remote(RemoteRunner(store=address, agent="letters:two_turns"), lambda *_: None)
    await gateway.stop()
    await store.close()


async def test_a_store_without_a_gateway_asks_for_one() -> None:
    with pytest.raises(ConfigError, match="Name the gateway with --gateway"):
        await run_remote(RemoteRunner(store="memory:", agent="letters:two_turns"), lambda *_: None)
    with pytest.raises(ConfigError) as raised:
        await run_remote(RemoteRunner(store="postgresql://me:hunter2@db/agl", agent="letters:two_turns"), lambda *_: None)
    assert "'postgresql://db/agl' has no gateway" in str(raised.value)


async def test_the_token_of_a_gateway_beside_another_store_is_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store("memory:")
    make_tokenizer(tmp_path)
    server = StoreServer(store, "secret")
    order = order_route(server, RunnerOrder(model="scripted"))
    gateway = Gateway(store, ScriptedEngine(tmp_path, [[1]]), extra_routes=[order])
    await gateway.start()
    runner = RemoteRunner(store=f"sqlite:{tmp_path / 'a.db'}", gateway=gateway.base_url, agent="no_such_module:solve")
    with pytest.raises(ConfigError, match="refused the token"):
        await run_remote(runner, lambda *_: None)
    monkeypatch.setenv("AGL_TOKEN", "secret")
    with pytest.raises(ConfigError, match="no_such_module"):  # the next thing that it reads
        await run_remote(runner, lambda *_: None)
    await gateway.stop()
    await store.close()


async def test_a_run_without_runners_says_so_once_and_again_when_the_last_one_is_gone() -> None:
    server, told = StoreServer(open_store("memory:"), "secret"), list[str]()
    watch = asyncio.create_task(watch_runners(server, 0.5, "agl runner ...", told.append))
    await asyncio.sleep(1.3)
    server.last_sign = time.monotonic()
    await asyncio.sleep(1.8)
    watch.cancel()
    assert [message.splitlines()[0] for message in told] == [
        "Waiting for runners. Start one on each machine that has the agent:",
        "There is still no runner after 0.5 s. Start one:",
        "A runner asks for work.",
        "No runner has asked for work for 0.5 s, so the run waits. Start one:",
    ]
    await server.store.close()


def test_the_printed_command_names_everything_that_a_runner_needs() -> None:
    config = Config(
        agent="my_agent:solve", tasks="x.jsonl", model="m", adapters=("langchain",), host="0.0.0.0", address="http://trainer:80/",
        runner=RunnerSettings(remote=True),
    )  # fmt: skip
    command = runner_command(remote_runner(config, "my_agent:solve", "secret", "http://127.0.0.1:8001/v1"))
    assert command == "agl runner --store http://secret@trainer:80 --agent my_agent:solve --adapter langchain"
    program = Config(command="node 'my agent.js'", tasks="x.jsonl", model="m", reward="exit_code", runner=RunnerSettings(remote=True))
    command = runner_command(remote_runner(program, "", "secret", "http://127.0.0.1:8001/v1"))
    assert shlex.split(command)[2:] == [
        "--store", "http://secret@127.0.0.1:8001", "--command", "node 'my agent.js'", "--reward", "exit_code",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runner", "--agent", "a:b"], "does not know the store"),
        (["runner", "--store", "http://t@127.0.0.1:1"], "has no agent"),
        (["runner", "--store", "http://t@127.0.0.1:1", "--agent", "a:b", "--command", "true"], "both --agent and --command"),
        (["runner", "--store", "http://t@127.0.0.1:1", "--command", "true", "--reward", "x"], "--reward is 'x'"),
        (["store", "serve", "--host", "0.0.0.0"], "no token"),
    ],
)
def test_a_wrong_argument_is_a_usage_error(words: list[str], message: str, processes: Processes) -> None:
    process = processes.agl(*words, AGL_STORE="", AGL_TOKEN="")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert message in " ".join(output.split())
