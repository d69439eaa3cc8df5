"""Several policies with full weights of their own: each samples, learns, and is saved exactly as a model that is alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from policies_world import PROMPT, ask, expected, parameters, random_adapter, serving, trainers
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen2MoeConfig, Qwen3Config, StableLmConfig

from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ConfigError, EngineError, TrainerError
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.loss import PPOClip
from agentlightning.testing.rollouts import conversation, trajectory
from agentlightning.types import Policy
from agentlightning_torch.adapters import plain
from agentlightning_torch.frozen import frozen_layers
from agentlightning_torch.own_layers import own_parameters
from world import two_turns

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, untied": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=32),  # norms of heads, which come before the tokens
    "stablelm": StableLmConfig(**SIZES, qk_layernorm=True),  # a norm for each head
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=256, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
}


LISTED = ["llama, tied", "llama, untied", "qwen3"]
"""With a list of layers for `top:N`, and linear layers for adapters."""


@pytest.fixture(scope="module", params=LISTED)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return replace(random_model(request.param, tmp_path_factory.mktemp("built") / "tiny", 0), name=request.param)


def random_model(kind: str, folder: Path, seed: int) -> ModelFiles:
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(CONFIGS[kind])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.3) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter), alpha=0.3)
    made.save_pretrained(folder)
    return ModelFiles("tiny", str(folder))


def own(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in own_parameters(trainer.weights.adapters, trainer.name).items()}


# --- the engine ---


async def test_full_models_an_adapter_and_the_model_sample_in_one_batch_as_each_does_alone(tmp_path: Path) -> None:
    for kind in CONFIGS:
        files = random_model(kind, tmp_path / kind / "base", 0)
        folders = {name: Path(random_model(kind, tmp_path / kind / name, seed).path) for seed, name in enumerate(("one", "two"), 1)}
        async with serving(files, {}, dtype="float32") as engine:
            for name, folder in folders.items():
                await engine.load(Policy(name=name, version=3, base="tiny", uri=f"file:{folder}"))
            await engine.load(Policy(name="plain", version=0, base="tiny", uri=f"file:{files.path}"))
            names = ["one", "plain", "two", "one", "two", "plain"]
            if kind in LISTED:
                adapter = random_adapter(files, tmp_path / kind / "adapter", 5)
                await engine.load(Policy(name="adapted", version=1, base="tiny", kind="lora", uri=f"file:{adapter}"))
                names.append("adapted")
            requests = [(engine.policies[name], [*PROMPT, k], {"seed": k}) for k, name in enumerate(names)]
            together = await asyncio.gather(*(ask(policy, ids, **sampling) for policy, ids, sampling in requests))
            assert engine.counts.steps < len(names) * 12, "the replies were decoded together"
            again = [await ask(policy, ids, **sampling) for policy, ids, sampling in requests]
        for name, (_, ids, _), (tokens, logprobs), (own_tokens, _) in zip(names, requests, together, again, strict=True):
            assert tokens == own_tokens
            if name != "adapted":
                alone = AutoModelForCausalLM.from_pretrained(folders.get(name, files.path)).eval()
                np.testing.assert_allclose(logprobs, expected(alone, ids, tokens), atol=1e-4)
        assert len({tuple(tokens) for tokens, _ in together}) > len(names) // 2, "the policies differ"


async def test_a_full_model_that_differs_in_one_layer_takes_the_memory_of_one_layer(built: ModelFiles, tmp_path: Path) -> None:
    changed = AutoModelForCausalLM.from_pretrained(built.path)
    name, parameter = next((name, p) for name, p in changed.named_parameters() if ".1." in name and p.ndim == 2)
    with torch.no_grad():
        parameter.mul_(2.0)
    changed.save_pretrained(tmp_path / "changed")
    async with serving(built, {}, dtype="float32") as engine:
        await engine.load(Policy(name="changed", version=1, base=built.name, uri=f"file:{tmp_path / 'changed'}"))
        await engine.load(Policy(name="plain", version=0, base=built.name, uri=f"file:{built.path}"))
        layers = engine._weights.adapters.own["policy_changed"]
        assert list(layers) == [name.rpartition(".")[0]]
        tokens, logprobs = await ask(engine.policies["changed"], PROMPT)
        np.testing.assert_allclose(logprobs, expected(changed.eval(), PROMPT, tokens), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}, "rope_parameters differs"),
        ({"rms_norm_eps": 0.1}, "rms_norm_eps differs"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings differs"),
    ],
)
async def test_a_full_model_that_computes_something_else_is_refused_by_name(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    files = random_model("llama, tied", tmp_path / "base", 0)
    AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZES, "tie_word_embeddings": True, **change})).save_pretrained(tmp_path / "other")
    async with serving(files, {}, dtype="float32") as engine:
        with pytest.raises(EngineError, match=says):
            await engine.load(Policy(name="other", version=1, base="tiny", uri=f"file:{tmp_path / 'other'}"))
        assert list(engine.policies) == ["main"]


async def test_a_policy_keeps_its_kind_and_new_versions_replace_its_layers_in_place(built: ModelFiles, tmp_path: Path) -> None:
    versions = [random_model(built.name, tmp_path / str(seed), seed).path for seed in (1, 2)]
    adapter = random_adapter(built, tmp_path / "adapter", 5)
    async with serving(built, {}, dtype="float32") as engine:
        kept: list[Any] = []
        for version, folder in enumerate(versions):
            await engine.load(Policy(name="one", version=version, base=built.name, uri=f"file:{folder}"))
            tokens, logprobs = await ask(engine.policies["one"], PROMPT)
            np.testing.assert_allclose(logprobs, expected(AutoModelForCausalLM.from_pretrained(folder).eval(), PROMPT, tokens), atol=1e-4)
            kept.append([id(value) for value in own_parameters(engine._weights.adapters, "one").values()])
        assert kept[0] == kept[1]
        with pytest.raises(EngineError, match="Policy 'one' is served as 'full' and cannot become 'lora'"):
            await engine.load(Policy(name="one", version=2, base=built.name, kind="lora", uri=f"file:{adapter}"))


# --- the trainer ---


@pytest.mark.parametrize("train", ["full", "top:2"])
@pytest.mark.parametrize("built", [*LISTED, "gpt2"], indirect=True)
async def test_a_policy_takes_exactly_the_steps_that_it_takes_alone_and_others_stay_bit_equal(built: ModelFiles, train: str) -> None:
    if train != "full" and built.name == "gpt2":
        pytest.skip("GPT-2 keeps its layers under another name")
    settings = {"dtype": "float64", "train": train, "clip_norm": 1e9, "lr": 1e-2}
    batches = [two_turns(seed) for seed in range(3)]
    loss = PPOClip(kl_coef=0.1, epochs=2, minibatches=2)
    async with trainers(built, {}, "main", **settings) as [alone]:
        expected_metrics = [(await alone.step(batch, loss))[1] for batch in batches]
        trained = set(alone.optimizer.parameters)
        expected_weights = {name: value for name, value in parameters(alone.weights).items() if name in trained}
    async with trainers(built, {}, "writer", "editor", **settings) as [writer, editor]:
        base, others = parameters(writer.weights), own(editor)
        metrics = [(await writer.step(batch, loss))[1] for batch in batches]
        weights = own(writer)
        with writer.weights.lock, writer.weights.adapters.all("writer"):
            assert len(frozen_layers(plain(writer.weights.model))) == (1 if train == "top:2" else 0)
        assert all(torch.equal(value, base[name]) for name, value in parameters(writer.weights).items()), "the model stays as it is"
        assert all(torch.equal(value, others[name]) for name, value in own(editor).items()), "so does the other policy"
        await editor.step(two_turns(9), loss)
        assert all(torch.equal(value, weights[name]) for name, value in own(writer).items())
        assert any(not torch.equal(value, others[name]) for name, value in own(editor).items())
    assert weights.keys() == expected_weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected_weights[name], rtol=1e-9, atol=1e-12)
        assert not torch.equal(value, base[name]), f"{name} is trained"
    for one, other in zip(metrics, expected_metrics, strict=True):
        for name in ("loss", "grad_norm", "kl", "entropy"):
            assert one[name] == pytest.approx(other[name], rel=1e-9), name


async def test_a_head_is_trained_beside_an_adapter_on_the_head(built: ModelFiles, tmp_path: Path) -> None:
    adapter = random_adapter(built, tmp_path / "adapter", 3, target_modules=["q_proj", "lm_head"])
    settings = {"dtype": "float64", "train": "full"}
    async with trainers(built, {}, "writer", **settings) as [alone]:
        _, before = await alone.step(two_turns(0), PPOClip())
        weights = own(alone)
    share: dict[str, object] = {}
    async with trainers(built, share, "writer", **settings) as [writer], serving(built, share) as engine:
        await engine.load(Policy(name="frozen", version=0, base=built.name, kind="lora", uri=f"file:{adapter}"))
        _, after = await writer.step(two_turns(0), PPOClip())
        assert after["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-9)
        for name, value in own(writer).items():
            torch.testing.assert_close(value, weights[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("copy_weights", [False, True])
async def test_engine_and_trainers_agree_on_own_layers_adapters_and_the_model(built: ModelFiles, copy_weights: bool) -> None:
    share: dict[str, object] = {}
    common = {"dtype": "float32"}
    async with (
        trainers(built, share, "writer", train="full", **common) as [writer],
        trainers(built, share, "adapted", **common) as [adapted],
        trainers(built, share, "editor", train="top:1", **common) as [editor],
        serving(built, share, copy_weights=copy_weights) as engine,
    ):
        await engine.load(Policy(name="frozen", version=0, base=built.name, uri=f"file:{built.path}"))
        made = (writer, adapted, editor)
        for version in range(3):
            names = [*(trainer.name for trainer in made), "frozen"]
            replies = await asyncio.gather(*(ask(engine.policies[name], PROMPT, seed=version) for name in names))
            if version:
                assert len({tuple(tokens) for tokens, _ in replies}) == 4, "the policies differ"
            for trainer, (tokens, logprobs) in zip(made, replies[:3], strict=True):
                turns = conversation(PROMPT, [(tokens, [])], logprobs=logprobs, versions=version)
                rollouts = [trajectory(0, *turns), trajectory(1, *(structs.replace(turn, completion_id="other") for turn in turns))]
                _, metrics = await trainer.step(make_batch(rollouts, [np.ones(1), -0.5 * np.ones(1)]), PPOClip())
                assert metrics["mismatch_abs"] < 1e-4
                assert metrics["grad_norm"] > 0
                await engine.load(trainer.policy)
            alone = AutoModelForCausalLM.from_pretrained(built.path).eval()
            np.testing.assert_allclose(replies[3][1], expected(alone, PROMPT, replies[3][0]), atol=1e-4)
        assert {name: one.policy.version for name, one in engine.policies.items()} == {"writer": 3, "adapted": 3, "editor": 3, "frozen": 0}


async def test_a_restored_policy_takes_bitwise_the_same_next_step_and_its_checkpoint_is_a_model(built: ModelFiles, tmp_path: Path) -> None:
    settings = {"dtype": "float32", "train": "full"}
    async with trainers(built, {}, "writer", "editor", **settings) as [writer, editor]:
        for seed in range(2):
            await writer.step(two_turns(seed), PPOClip())
        await editor.step(two_turns(7), PPOClip())
        for trainer in (writer, editor):
            await trainer.save(tmp_path / trainer.name)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "writer").eval()
        with writer.weights.lock, writer.weights.adapters.all("writer"):
            np.testing.assert_allclose(expected(loaded, PROMPT, [9, 8]), expected(writer.weights.model, PROMPT, [9, 8]), atol=1e-6)
        exported = await writer.export(tmp_path / "exported")
        _, before = await writer.step(two_turns(2), PPOClip())
        stepped = own(writer)
    async with trainers(built, {}, "writer", "editor", **settings) as [writer, editor]:
        for trainer in (writer, editor):
            await trainer.restore(tmp_path / trainer.name)
        assert (writer.policy.version, editor.policy.version) == (2, 1)
        _, after = await writer.step(two_turns(2), PPOClip())
        assert all(torch.equal(value, stepped[name]) for name, value in own(writer).items())
        assert before["loss"] == after["loss"]
        with pytest.raises(TrainerError, match="trained as 'full', but this run trains"):
            async with trainers(
                built, {}, "writer", dtype="float32", train="top:1" if "model.layers.0" in "".join(stepped) else "lora"
            ) as [other]:
                await other.restore(tmp_path / "writer")
    async with serving(built, {}, dtype="float32") as engine:
        assert (await engine.load(exported))["weight_check_diff"] < 1e-5
        tokens, logprobs = await ask(engine.policies["writer"], PROMPT)
        np.testing.assert_allclose(logprobs, expected(loaded, PROMPT, tokens), atol=1e-4)


async def test_a_layer_that_mixes_tokens_is_refused_by_name_and_changes_nothing(tmp_path: Path) -> None:
    config = Qwen2MoeConfig(**SIZES, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "moe")
    files, share = ModelFiles("moe", str(tmp_path / "moe")), {}
    with pytest.raises(ConfigError, match=r"Policy 'writer' cannot have weights of its own in layer .*mlp.gate' \(Qwen2MoeTopKRouter\)"):
        async with trainers(files, share, "writer", train="full"):
            pass
    async with trainers(files, share, "main", train="full", dtype="float32") as [alone]:
        assert (await alone.step(two_turns(0), PPOClip()))[1]["grad_norm"] > 0
