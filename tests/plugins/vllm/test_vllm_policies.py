"""Several policies on the vLLM engine: adapters over one model, served at once, each exact and with its own version."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from safetensors.torch import load_file, save_file
from vllm_world import PolicyWorld, ask, expected, prompt

from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import EngineError
from agentlightning.training.policies import frozen_policy
from agentlightning.training.weight_sync import folder_of
from agentlightning_vllm.settings import VllmSettings

pytestmark = pytest.mark.timeout(900 if os.environ.get("AGL_TEST_VLLM") else 240)
Opened = Callable[..., Awaitable[PolicyWorld]]


@pytest.fixture
async def opened(python: str, files: ModelFiles, tmp_path: Path) -> AsyncIterator[Opened]:
    """Opens worlds whose policies are served, and ends them."""
    worlds: list[PolicyWorld] = []

    async def opened(**ranks: int) -> PolicyWorld:
        worlds.append(await PolicyWorld.open(files, tmp_path, ranks, VllmSettings(python=python)))
        await worlds[-1].serve_changed(*ranks)
        return worlds[-1]

    yield opened
    for world in worlds:
        await world.close()


async def asked_at_once(world: PolicyWorld, prompts: list[list[int]], **settings: Any) -> dict[str, list[Any]]:
    """The replies of every policy to the same prompts, all in flight together."""
    names = list(world.engine.policies)
    calls = [ask(world.engine.policies[name], ids, **settings) for ids in prompts for name in names]
    replies = await asyncio.gather(*calls)
    return {name: replies[place :: len(names)] for place, name in enumerate(names)}


def check_replies(world: PolicyWorld, prompts: list[list[int]], replies: dict[str, list[Any]], versions: dict[str, int]) -> None:
    for name, own in replies.items():
        model = world.model_of(name)
        for ids, (tokens, logprobs, stamped, _) in zip(prompts, own, strict=True):
            assert stamped == {versions[name]}
            np.testing.assert_allclose(logprobs, expected(model, ids, tokens), atol=1e-3)


async def test_two_adapters_and_the_model_answer_at_once_as_peft_does_and_new_weights_are_of_one_policy(opened: Opened) -> None:
    world = await opened(writer=4, editor=8)
    engine, pid = world.engine, world.engine.replicas[0].pid
    await engine.load(frozen_policy("plain", world.files))
    assert list(engine.policies) == ["writer", "editor", "plain"]
    prompts = [prompt(60), prompt(60), prompt(33, 1)]
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 20}
    before = await asked_at_once(world, prompts, **greedy)
    check_replies(world, prompts, before, {"writer": 1, "editor": 1, "plain": 0})
    assert len({tuple(own[0][0]) for own in before.values()}) == 3, "the policies differ"

    # sampled, and one by one, with the prompts in the server's prefix cache
    sampled = await asked_at_once(world, prompts, seed=3)
    check_replies(world, prompts, sampled, {"writer": 1, "editor": 1, "plain": 0})

    # new weights for one: its own replies change at once, those of the others do not
    world.change("writer", 0.2)
    (measured,) = await world.serve("writer")
    assert 0 <= measured["weight_check_diff"] < 1e-3
    after = await asked_at_once(world, prompts, **greedy)
    check_replies(world, prompts, after, {"writer": 2, "editor": 1, "plain": 0})
    assert after["writer"][0][0] != before["writer"][0][0]
    for name in ("editor", "plain"):
        for (tokens, logprobs, *_), (later, later_logprobs, *_) in zip(before[name], after[name], strict=True):
            assert tokens == later
            np.testing.assert_allclose(logprobs, later_logprobs, atol=1e-4)  # other weights: 1e-2 and more; another batch: 1e-5
    assert {name: own.policy.version for name, own in engine.policies.items()} == {"writer": 2, "editor": 1, "plain": 0}
    assert await engine.load(engine.policy) == {}  # what a step begins with
    assert engine.replicas[0].pid == pid, "a server has room for two adapters from its start"


@pytest.mark.slow
async def test_a_killed_server_brings_every_policy_back_and_no_reply_is_lost(opened: Opened) -> None:
    world = await opened(writer=4, editor=4)
    world.change("editor", 0.2)
    await world.serve("editor")
    await world.engine.load(frozen_policy("plain", world.files))
    replica = world.engine.replicas[0]
    first, prompts = replica.pid, [prompt(20 + n, n) for n in range(2)]

    def kill() -> None:
        if replica.pid == first:
            os.kill(first, signal.SIGKILL)

    replies = await asked_at_once(world, prompts, max_tokens=60, seed=1, on_chunk=kill)
    assert replica.pid != first
    assert all(len(tokens) == 60 for own in replies.values() for tokens, *_ in own)
    check_replies(world, prompts, replies, {"writer": 1, "editor": 2, "plain": 0})
    # while nothing is in flight; the next load, of one policy, brings the others back too
    os.kill(replica.pid, signal.SIGKILL)
    world.change("writer", 0.2)
    (measured,) = await world.serve("writer")
    assert measured["weight_check_diff"] < 1e-3
    check_replies(world, prompts, await asked_at_once(world, prompts), {"writer": 2, "editor": 2, "plain": 0})


@pytest.mark.slow
async def test_a_server_without_room_for_another_adapter_is_replaced_by_a_larger_one(opened: Opened) -> None:
    world = await opened(one=2, two=4)
    first = world.engine.replicas[0].pid
    later = await PolicyWorld.open(world.files, world.folder, {"wide": 16}, VllmSettings(python=world.engine._settings.python))
    later.change("wide", 0.2)
    await world.engine.load(await later.export("wide"))
    await later.close()
    assert world.engine.replicas[0].pid != first
    prompts = [prompt(40)]
    check_replies(world, prompts, await asked_at_once(world, prompts), {"one": 1, "two": 1, "wide": 1})


async def test_an_adapter_that_was_sabotaged_is_an_error_and_the_others_answer_on(opened: Opened) -> None:
    world = await opened(writer=4, editor=4)
    world.change("editor", 0.2)
    policy = await world.export("editor")
    file = folder_of(policy) / "adapter_model.safetensors"
    save_file({name: 2 * value for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(EngineError, match=r"loaded editor version 2 from .* differ from the trainer's by .* nats"):
        await world.engine.load(policy)
    assert {name: own.policy.version for name, own in world.engine.policies.items()} == {"writer": 1, "editor": 1}
    tokens, logprobs, versions, _ = await ask(world.engine.policies["writer"], prompt(30))
    np.testing.assert_allclose(logprobs, expected(world.model_of("writer"), prompt(30), tokens), atol=1e-3)
    assert versions == {1}
    # the weights of another policy, and those of the version before
    for foreign in ("writer-1", "editor-1"):
        world.change("editor", 0.2)
        policy = await world.export("editor")
        other = load_file(world.folder / foreign / "adapter_model.safetensors")
        save_file(other, folder_of(policy) / "adapter_model.safetensors", {"format": "pt"})
        with pytest.raises(EngineError, match="loaded editor version"):
            await world.engine.load(policy)
    world.change("editor", 0.2)
    await world.serve("editor")
    check_replies(world, [prompt(30)], await asked_at_once(world, [prompt(30)]), {"writer": 1, "editor": 5})


async def test_weights_that_cannot_be_a_policy_beside_others_are_refused_by_name(opened: Opened, tmp_path: Path) -> None:
    world = await opened(writer=4)
    full = frozen_policy("other", ModelFiles("other", str(tmp_path)))
    with pytest.raises(EngineError, match=r"Policy 'other' has the full model in .* named policies are adapters over 'tiny'"):
        await world.engine.load(full)
    with pytest.raises(EngineError, match=r"vLLM serves 'writer' and cannot add policy 'main'"):
        await world.engine.load(frozen_policy("main", world.files))
    with pytest.raises(EngineError, match="holds no LoRA adapter"):
        await world.engine.load(structs.replace(frozen_policy("empty", world.files, str(tmp_path)), kind="lora"))
    assert list(world.engine.policies) == ["writer"]
    assert (await ask(world.engine.policies["writer"], prompt(5)))[2] == {1}


async def test_a_server_that_somebody_restarted_gets_every_policy_again(opened: Opened) -> None:
    world = await opened(writer=4, editor=4)
    replica = world.engine.replicas[0]
    first = replica.pid
    assert await world.engine.load(world.engine.policy) == {}  # what a step begins with
    assert replica.pid == first
    await world.engine._do(replica.wire.stamp("version 1"))  # of a run with one policy
    await world.engine.load(world.engine.policy)
    assert replica.pid != first
    prompts = [prompt(30)]
    check_replies(world, prompts, await asked_at_once(world, prompts), {"writer": 1, "editor": 1})
