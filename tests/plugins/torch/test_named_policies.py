"""Several policies over one model: the engine samples them in one batch as peft does alone, and their gradients do not mix."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from msgspec import structs
from policies_world import PROMPT, ask, expected, parameters, random_adapter, serving, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import EngineError, TrainerError
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.loss import PPOClip
from agentlightning.testing.rollouts import conversation, trajectory
from agentlightning.training.weight_sync import folder_of
from agentlightning.types import Policy
from agentlightning_torch.adapters import adapter_name
from agentlightning_torch.engine import TorchEngine
from agentlightning_torch.trainer import TorchTrainer
from agentlightning_torch.weights import get_weights
from world import two_turns


@pytest.fixture(scope="module")
def folders(model: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: random_adapter(model, root / name, seed, r=rank) for seed, (name, rank) in enumerate({"one": 4, "two": 8}.items())}


@asynccontextmanager
async def three_policies(model: ModelFiles, folders: dict[str, Path], **settings: Any) -> AsyncIterator[TorchEngine]:
    """An engine with two adapters of different ranks, and the model as it is."""
    async with serving(model, {}, **settings) as engine:
        for name, folder in folders.items():
            await engine.load(Policy(name=name, version=3, base="tiny", kind="lora", uri=f"file:{folder}"))
        await engine.load(Policy(name="plain", version=0, base="tiny", uri=f"file:{model.path}"))
        yield engine


@contextmanager
def reference(model: ModelFiles, folder: Path | None) -> Iterator[Any]:
    base = AutoModelForCausalLM.from_pretrained(model.path)
    yield base.eval() if folder is None else peft.PeftModel.from_pretrained(base, str(folder)).eval()


async def test_three_policies_in_one_batch_sample_as_each_does_alone_and_as_peft_does(model, folders):
    names = ["one", "plain", "two", "one", "two", "plain"]  # two rows of each, mixed
    async with three_policies(model, folders) as engine:
        assert list(engine.policies) == ["one", "two", "plain"]
        requests = [(engine.policies[name], [*PROMPT, 60 + k], {"seed": k}) for k, name in enumerate(names)]
        together = await asyncio.gather(*(ask(policy, ids, **sampling) for policy, ids, sampling in requests))
        assert engine.counts.steps < 6 * 12, "the replies were decoded together"
        alone = [await ask(policy, ids, **sampling) for policy, ids, sampling in requests]
    for name, (_, ids, _), (tokens, logprobs), (own_tokens, own_logprobs) in zip(names, requests, together, alone, strict=True):
        assert tokens == own_tokens
        np.testing.assert_allclose(logprobs, own_logprobs, atol=2e-5)
        with reference(model, folders.get(name)) as alone_model:
            np.testing.assert_allclose(logprobs, expected(alone_model, ids, tokens), atol=2e-5)


async def test_no_policy_uses_the_keys_of_another_one(model, folders):
    async with three_policies(model, folders) as engine:
        first = await asyncio.gather(*(ask(policy, PROMPT) for policy in engine.policies.values()))
        assert engine.counts.copied == 0
        assert engine.counts.prefilled == 3 * (len(PROMPT) - 1)
        backwards = [await ask(policy, PROMPT) for policy in [*engine.policies.values()][::-1]]  # from the prefix cache, each its own
        again = backwards[::-1]
        assert engine.counts.copied == 3 * (len(PROMPT) - 1)
    assert len({tuple(tokens) for tokens, _ in first}) == 3, "the policies differ"
    for (tokens, logprobs), (later, later_logprobs) in zip(first, again, strict=True):
        assert tokens == later
        np.testing.assert_allclose(logprobs, later_logprobs, atol=2e-5)


async def test_rows_of_one_policy_share_their_prompt_and_rows_of_others_do_not(model, folders):
    prompt = PROMPT * 2  # beyond the length at which rows share their keys
    async with three_policies(model, folders) as engine:
        policies = [engine.policies[name] for name in ("one", "two", "one", "two")]
        together = await asyncio.gather(*(ask(policy, [*prompt, k], seed=k) for k, policy in enumerate(policies)))
        assert engine.counts.copied == 2 * len(prompt) - 2 + 2, "the second row of each policy copies the prompt of the first"
    for k, (name, (tokens, logprobs)) in enumerate(zip(("one", "two", "one", "two"), together, strict=True)):
        with reference(model, folders[name]) as alone:
            np.testing.assert_allclose(logprobs, expected(alone, [*prompt, k], tokens), atol=2e-5)


async def test_a_new_version_of_one_policy_leaves_the_others_as_they_are(model, folders, tmp_path):
    async with three_policies(model, folders) as engine:
        before = {name: await ask(policy, PROMPT) for name, policy in engine.policies.items()}
        other = random_adapter(model, tmp_path / "new", 7)
        await engine.load(Policy(name="one", version=4, base="tiny", kind="lora", uri=f"file:{other}"))
        after = {name: await ask(policy, PROMPT) for name, policy in engine.policies.items()}
        assert {name: policy.policy.version for name, policy in engine.policies.items()} == {"one": 4, "two": 3, "plain": 0}
    assert after["one"][0] != before["one"][0]
    for name in ("two", "plain"):
        assert after[name][0] == before[name][0]
        np.testing.assert_array_equal(after[name][1], before[name][1])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"target_modules": ["embed_tokens"]}, "a layer Embedding"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
async def test_an_adapter_that_single_rows_cannot_have_is_refused_and_changes_nothing(model, folders, tmp_path, settings, says):
    folder = random_adapter(model, tmp_path / "other", 3, **settings)
    async with three_policies(model, folders) as engine:
        before = await ask(engine.policies["one"], PROMPT)
        with pytest.raises(EngineError, match=says):
            await engine.load(Policy(name="new", version=0, base="tiny", kind="lora", uri=f"file:{folder}"))
        assert list(engine.policies) == ["one", "two", "plain"]
        after = await ask(engine.policies["one"], PROMPT)
    assert before[0] == after[0]
    np.testing.assert_array_equal(before[1], after[1])


async def test_a_full_model_of_other_shapes_is_refused_by_name(model, folders, tmp_path):
    other = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2))
    other.save_pretrained(tmp_path / "other")
    async with three_policies(model, folders) as engine:
        before = await ask(engine.policies["one"], PROMPT)
        for folder, says in ((tmp_path / "other", r"other' is not 'tiny': .* differs"), (tmp_path, "cannot be loaded into 'tiny'")):
            with pytest.raises(EngineError, match=says):
                await engine.load(Policy(name="new", version=0, base="tiny", uri=f"file:{folder}"))
        assert list(engine.policies) == ["one", "two", "plain"]
        assert (await ask(engine.policies["one"], PROMPT))[0] == before[0]


async def test_a_model_whose_layers_lose_the_order_of_tokens_is_refused_and_serves_its_first_policy_on(tmp_path):
    config = Qwen2MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16, max_position_embeddings=128,
    )  # fmt: skip
    Qwen2MoeForCausalLM(config).save_pretrained(tmp_path / "moe")
    files = ModelFiles("moe", str(tmp_path / "moe"))
    folders = [random_adapter(files, tmp_path / name, seed) for seed, name in enumerate("ab")]
    async with serving(files, {}, dtype="float32") as engine:
        await engine.load(Policy(name="a", version=0, base="moe", kind="lora", uri=f"file:{folders[0]}"))
        before = await ask(engine.policies["a"], PROMPT)
        with pytest.raises(
            EngineError, match="Model 'moe' cannot serve several policies in one batch: a layer gets its tokens in the shape"
        ):
            await engine.load(Policy(name="b", version=0, base="moe", kind="lora", uri=f"file:{folders[1]}"))
        assert list(engine.policies) == ["a"]
        assert (await ask(engine.policies["a"], PROMPT))[0] == before[0]


# --- the trainer ---


def moments(trainer: TorchTrainer) -> dict[str, torch.Tensor]:
    """AdamW's average gradient by layer: the gradient itself times a number, after one step."""
    own = f".{adapter_name(trainer.name)}." if trainer.name != "main" else ".default."
    return {name.replace(own, "."): value for name, value in trainer.optimizer.state().items() if name.startswith("exp_avg.")}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
async def test_a_policy_gets_exactly_the_gradient_that_it_gets_alone_and_others_stay_bit_equal(model, dtype):
    settings = {"dtype": dtype, "clip_norm": 1e9}
    async with trainers(model, {}, "main", **settings) as [alone]:
        await alone.step(two_turns(0), PPOClip())
        expected_moments = moments(alone)
    async with trainers(model, {}, "writer", "editor", **settings) as [writer, editor]:
        before = parameters(writer.weights)
        await writer.step(two_turns(0), PPOClip())
        after = parameters(writer.weights)
        ours = f".{adapter_name('writer')}."
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        assert changed
        assert all(ours in name for name in changed)
        for trainer in (writer, editor):
            assert all(f".{adapter_name(trainer.name)}." in name for name in trainer.optimizer.parameters)
        await editor.step(two_turns(1), PPOClip())
        last = parameters(writer.weights)
        assert all(torch.equal(last[name], after[name]) for name in last if f".{adapter_name('editor')}." not in name)
        got = moments(writer)
    assert got.keys() == expected_moments.keys()
    for name, value in got.items():
        torch.testing.assert_close(value, expected_moments[name], rtol=1e-9 if dtype == "float64" else 1e-5, atol=1e-12)


async def test_the_reference_of_a_policy_is_the_model_and_no_other_policy(model):
    loss = PPOClip(kl_coef=0.1)
    async with trainers(model, {}, "main") as [alone]:
        await alone.step(two_turns(0), loss)
        _, expected_metrics = await alone.step(two_turns(0), loss)
    async with trainers(model, {}, "writer", "editor") as [writer, editor]:
        for seed in (3, 4):
            await editor.step(two_turns(seed), loss)
        await writer.step(two_turns(0), loss)
        _, metrics = await writer.step(two_turns(0), loss)
        _, others = await editor.step(two_turns(5), loss)
    assert metrics["kl"] == pytest.approx(expected_metrics["kl"], rel=1e-6)
    assert metrics["kl"] > 0
    assert others["grad_norm"] > 0, "its adapter is still trained after the other's reference"


async def test_engine_and_trainers_agree_on_both_policies_and_a_served_one_stays_bit_equal(model, folders):
    share: dict[str, object] = {}
    async with trainers(model, share, "writer", "editor", dtype="float32") as made, serving(model, share) as engine:
        frozen = Policy(name="one", version=0, base="tiny", kind="lora", uri=f"file:{folders['one']}")
        await engine.load(frozen)
        kept = {name: value for name, value in parameters(made[0].weights).items() if f".{adapter_name('one')}." in name}
        for version in range(2):
            names = ("writer", "editor", "one")
            replies = await asyncio.gather(*(ask(engine.policies[name], PROMPT, seed=version) for name in names))
            for trainer, (tokens, logprobs) in zip(made, replies[:2], strict=True):
                turns = conversation(PROMPT, [(tokens, [])], logprobs=logprobs, versions=version)
                rollouts = [trajectory(0, *turns), trajectory(1, *(structs.replace(turn, completion_id="other") for turn in turns))]
                _, metrics = await trainer.step(make_batch(rollouts, [np.ones(1), -0.5 * np.ones(1)]), PPOClip())
                assert metrics["mismatch_abs"] < 1e-5
                await engine.load(trainer.policy)
        assert {name: policy.policy.version for name, policy in engine.policies.items()} == {"writer": 2, "editor": 2, "one": 0}
        now = parameters(made[0].weights)
        assert kept
        assert all(torch.equal(now[name], value) for name, value in kept.items())


async def test_an_engine_with_weights_of_its_own_takes_all_policies(model, folders):
    share: dict[str, object] = {}
    async with trainers(model, share, "writer", "editor", dtype="float32") as [writer, editor]:
        async with serving(model, share, copy_weights=True) as engine:
            await engine.load(Policy(name="one", version=0, base="tiny", kind="lora", uri=f"file:{folders['one']}"))
            before = {name: await ask(policy, PROMPT) for name, policy in engine.policies.items()}
            for seed in range(3):
                await writer.step(two_turns(seed), PPOClip())
            assert (await ask(engine.policies["writer"], PROMPT))[0] == before["writer"][0], "not loaded yet"
            await engine.load(writer.policy)
            tokens, logprobs = await ask(engine.policies["writer"], PROMPT)
            with writer.weights.lock, writer.weights.adapters.all("writer"):
                np.testing.assert_allclose(logprobs, expected(writer.weights.model, PROMPT, tokens), atol=2e-5)
            assert not np.array_equal(logprobs, before["writer"][1])
            for name in ("editor", "one"):
                np.testing.assert_allclose((await ask(engine.policies[name], PROMPT))[1], before[name][1], atol=1e-6)
            await editor.step(two_turns(3), PPOClip())
            await engine.load(editor.policy)
            assert {name: policy.policy.version for name, policy in engine.policies.items()} == {"writer": 3, "editor": 1, "one": 0}


async def test_a_restored_policy_takes_bitwise_the_same_next_step_and_its_checkpoint_loads_with_peft(model, tmp_path):
    async with trainers(model, {}, "writer", "editor", dtype="float32") as [writer, editor]:
        for seed in range(2):
            await writer.step(two_turns(seed), PPOClip())
        await editor.step(two_turns(7), PPOClip())
        for trainer in (writer, editor):
            await trainer.save(tmp_path / trainer.name)
        loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model.path), str(tmp_path / "writer")).eval()
        with writer.weights.lock, writer.weights.adapters.all("writer"):
            np.testing.assert_allclose(expected(loaded, PROMPT, [9, 8]), expected(writer.weights.model, PROMPT, [9, 8]), atol=1e-6)
        _, before = await writer.step(two_turns(2), PPOClip())
        stepped = parameters(writer.weights)
    async with trainers(model, {}, "writer", "editor", dtype="float32") as [writer, editor]:
        with pytest.raises(TrainerError, match="is of policy 'editor', but this trainer trains 'writer'"):
            await writer.restore(tmp_path / "editor")
        for trainer in (writer, editor):
            await trainer.restore(tmp_path / trainer.name)
        assert (writer.policy.version, editor.policy.version) == (2, 1)
        _, after = await writer.step(two_turns(2), PPOClip())
        again = parameters(writer.weights)
    assert all(torch.equal(again[name], stepped[name]) for name in stepped)
    assert before["loss"] == after["loss"]


async def test_a_policy_is_exported_for_an_engine_of_another_process_with_a_check_of_its_own(model, tmp_path):
    async with trainers(model, {}, "writer", "editor", dtype="float32") as [writer, editor]:
        await writer.step(two_turns(0), PPOClip())
        await editor.step(two_turns(1), PPOClip())
        exported = [await trainer.export(tmp_path / trainer.name) for trainer in (writer, editor)]
        async with serving(model, {}, dtype="float32") as engine:
            for policy in exported:
                assert (await engine.load(policy))["weight_check_diff"] < 1e-5
            tokens, logprobs = await ask(engine.policies["writer"], PROMPT)
        with writer.weights.lock, writer.weights.adapters.all("writer"):
            np.testing.assert_allclose(logprobs, expected(writer.weights.model, PROMPT, tokens), atol=2e-5)
    assert (folder_of(exported[0]) / "adapter_model.safetensors").is_file()


def test_the_policies_of_a_model_share_its_weights(model):
    share: dict[str, object] = {}
    weights = get_weights(share, model, device="cpu")
    before = sum(parameter.numel() for parameter in weights.model.parameters())

    async def add() -> int:
        async with trainers(model, share, "writer", "editor") as made:
            assert made[0].weights is made[1].weights is weights
            return sum(parameter.numel() for parameter in weights.model.parameters())

    assert asyncio.run(add()) < 1.5 * before
