"""The torch trainer on a tiny Llama."""

from __future__ import annotations

import asyncio
import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from agentlightning.contracts.loss import CustomLoss, LossSettings
from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ConfigError, HalfStep, NonFinite, PluginError, TrainerError, UnsupportedSetting
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.correction.none import NoCorrection
from agentlightning.rl.loss import CISPO, FunctionLoss, PPOClip, SFTLoss
from agentlightning.rl.schedule import learning_rate
from agentlightning.testing.rollouts import conversation, trajectory
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.weight_sync import WeightCheck, folder_of
from agentlightning_torch import checkpoint
from agentlightning_torch.testing import tiny_model
from agentlightning_torch.trainer import Settings, TorchTrainer
from agentlightning_torch.weights import get_weights
from world import two_turns


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def training(files: ModelFiles, **settings) -> AsyncIterator[TorchTrainer]:
    trainer = await TorchTrainer.create(files, Settings(**{"lr": 1e-3, "device": "cpu", "dtype": "float32", **settings}), {})
    try:
        yield trainer
    finally:
        await trainer.close()


def state(trainer: TorchTrainer) -> dict[str, torch.Tensor]:
    return {**{k: v.clone() for k, v in trainer.weights.model.state_dict().items()}, **trainer.optimizer.state()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


async def test_a_step_makes_rewarded_tokens_likelier_and_the_version_one_higher(files: ModelFiles):
    async with training(files) as trainer:
        batch = two_turns(advantages=(1.0, 1.0))
        generation = trainer.weights.generation
        _, first = await trainer.step(batch, PPOClip())
        policy, second = await trainer.step(batch, CISPO())
        assert (policy.version, policy.uri.partition(":")[0], policy.base) == (2, "memory", "tiny")
        assert trainer.policy == policy == trainer.weights.policy
        assert trainer.weights.generation == generation + 2
        assert all(math.isfinite(v) for v in second.values())
        assert first["tokens_trained"] == 24
        assert first["tokens"] == len(batch) == first["tokens_context"] + 24
        assert first["forest_saving"] == pytest.approx(2 * 36 / 52)
        assert first["context_repeat"] == 0
        assert (first["version_gap_max"], second["version_gap_max"]) == (0, 1)
        assert 0 < first["entropy"] < math.log(trainer.weights.model.config.vocab_size)
        # both losses at ratio 1 have the gradient of -sum w A lp; the likelihood has gone up
        assert second["loss"] != first["loss"]
        _, third = await trainer.step(batch, CISPO())
        assert third["loss"] < second["loss"]


async def test_the_difference_between_engine_and_trainer_is_measured(files: ModelFiles):
    async with training(files) as trainer:
        batch = two_turns()
        _, metrics = await trainer.step(batch, PPOClip())
    async with training(files) as trainer:
        with torch.no_grad():
            ((scores, _),) = list(trainer._scores(trainer.weights.model, batch, None, False))
        recorded = batch.rollout_logprobs.copy()
        recorded[scores.index] = scores.logprob.numpy()
        agreed = replace(batch, rollout_logprobs=recorded)
        _, exact = await trainer.step(agreed, PPOClip())
    assert exact["mismatch_abs_max"] < 1e-6
    assert exact["mismatch_kl"] < 1e-9
    gap = recorded[scores.index].astype(np.float64) + 4.0
    assert metrics["mismatch_abs"] == pytest.approx(np.abs(gap).mean(), rel=1e-5)
    assert metrics["mismatch_abs_error"] == pytest.approx(np.abs(gap).std(ddof=1) / len(gap) ** 0.5, rel=1e-5)
    assert metrics["mismatch_kl"] == pytest.approx((np.exp(gap) - 1 - gap).mean(), rel=1e-5)


async def test_a_batch_without_signal_trains_nothing(files: ModelFiles):
    async with training(files) as trainer:
        before = state(trainer)
        policy, metrics = await trainer.step(two_turns(advantages=(0.0, 0.0)), PPOClip())
        assert policy.version == 0
        assert metrics["tokens_trained"] == 0
        assert same(state(trainer), before)


@pytest.mark.parametrize("train", ["full", "top:1", "lora"])
async def test_the_step_does_not_depend_on_the_size_of_packs(files: ModelFiles, train: str):
    after = []
    for tokens_per_pack in (4096, 60, 40):
        async with training(files, tokens_per_pack=tokens_per_pack, train=train, lr=1e-3, clip_norm=1e3) as trainer:
            _, metrics = await trainer.step(two_turns(), PPOClip())
            after.append(({n: p.detach().clone() for n, p in trainer.optimizer.parameters.items()}, metrics))
            assert (metrics["context_repeat"] > 0) == (tokens_per_pack < 100)
    for weights, metrics in after[1:]:
        assert metrics["grad_norm"] == pytest.approx(after[0][1]["grad_norm"], rel=1e-4)
        assert metrics["loss"] == pytest.approx(after[0][1]["loss"], rel=1e-4, abs=1e-6)
        for name, value in weights.items():
            # Adam's first step is lr * sign(gradient): where a gradient is nearly zero its sign is not stable
            assert ((value - after[0][0][name]).abs() < 2e-4).float().mean() > 0.99


async def test_several_epochs_and_minibatches_take_several_steps_of_one_version(files: ModelFiles):
    async with training(files) as trainer:
        policy, metrics = await trainer.step(two_turns(), PPOClip(epochs=2, minibatches=2))
        assert policy.version == 1
        assert trainer.steps == 1
        assert {float(s["step"]) for s in trainer.optimizer.adam.state.values()} == {4.0}
        assert metrics["ratio_mean"] != 1
        assert 0 <= metrics["clip_fraction"] <= 1
        assert metrics["tokens_trained"] == 48


async def test_minibatches_without_movement_add_up_to_the_full_gradient(files: ModelFiles):
    async with training(files) as trainer:
        batch, grads = two_turns(), []
        for count in (1, 2):
            trainer.optimizer.zero()
            update = trainer._update(batch, CISPO(minibatches=count))
            update.prepare()
            for part in range(count):
                update.gradient(part)
            grads.append({n: p.grad / count for n, p in trainer.optimizer.parameters.items()})
        for name, value in grads[0].items():
            torch.testing.assert_close(value, grads[1][name], rtol=1e-4, atol=1e-6)


@dataclass(frozen=True, kw_only=True)
class Own(CustomLoss):
    """A user's loss; poisoned from the `after`th pack on."""

    name: str = "own"
    after: int = 100
    seen: list = None  # type: ignore[assignment]

    def term(self, logprobs, old_logprobs, advantages):
        self.seen.append(len(logprobs))
        return -advantages * logprobs * (float("nan") if len(self.seen) > self.after else 1.0)


@pytest.mark.parametrize(("epochs", "after"), [(1, 0), (3, 2)])
async def test_a_loss_that_is_not_finite_leaves_weights_and_moments_untouched(files: ModelFiles, epochs: int, after: int):
    async with training(files) as trainer:
        await trainer.step(two_turns(), PPOClip())
        before = state(trainer)
        with pytest.raises(NonFinite, match="The loss is nan"):
            await trainer.step(two_turns(), Own(epochs=epochs, after=after, seen=[]))
        assert same(state(trainer), before)
        assert trainer.policy.version == 1
        _, metrics = await trainer.step(two_turns(), Own(seen=[]))  # and goes on
        assert trainer.policy.version == 2
        assert math.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    ("term", "error", "says"),
    [
        (lambda logprobs, *_: logprobs.detach(), TrainerError, "loss 'own' returned a term without a gradient"),
        (lambda logprobs, *_: logprobs.missing, PluginError, r"algorithm\.loss 'own' raised AttributeError: .*missing.*line"),
    ],
)
async def test_a_loss_of_ones_own_that_cannot_train_is_named(files: ModelFiles, term: Any, error: type[Exception], says: str):
    async with training(files) as trainer:
        with pytest.raises(error, match=says):
            await trainer.step(two_turns(), FunctionLoss(name="own", function=term))


async def test_a_gradient_that_is_not_finite_leaves_weights_and_moments_untouched(files: ModelFiles):
    async with training(files) as trainer:
        before = state(trainer)
        trainer.optimizer.parameters["model.norm.weight"].register_hook(lambda g: g * float("inf"))
        with pytest.raises(NonFinite, match="norm of the gradient"):
            await trainer.step(two_turns(), PPOClip())
        assert same(state(trainer), before)


async def test_an_unknown_loss_is_refused_by_name(files: ModelFiles):
    async with training(files) as trainer:
        with pytest.raises(
            UnsupportedSetting, match=r"'gpso', and trainer 'torch' does not have it\. Use one of cispo, dpo, gspo, ppo_clip"
        ):
            await trainer.step(two_turns(), LossSettings(name="gpso"))
        assert {"ppo_clip", "cispo"} <= trainer.capabilities.losses


async def test_top_layers_are_the_last_blocks_and_the_final_norm(files: ModelFiles):
    async with training(files, train="top:1") as trainer:
        before = state(trainer)
        await trainer.step(two_turns(), PPOClip())
        changed = {k for k, v in trainer.weights.model.state_dict().items() if not torch.equal(v, before[k])}
        assert changed
        assert all(k.startswith(("model.layers.1.", "model.norm.")) for k in changed)
    with pytest.raises(ConfigError, match="has 2 layers"):
        async with training(files, train="top:3"):
            pass


@pytest.mark.parametrize("train", ["full", "top:1", "lora"])
async def test_a_restored_trainer_takes_bitwise_the_same_next_step(files: ModelFiles, train: str, tmp_path: Path):
    torch.set_num_threads(1)
    settings = {"train": train, "schedule": "cosine", "warmup_steps": 1, "total_steps": 10}
    async with training(files, **settings) as trainer:
        await trainer.step(two_turns(0), PPOClip(epochs=2))
        await trainer.save(tmp_path / "step1")
        await trainer.save(tmp_path / "step1")  # in place of the first
        _, metrics = await trainer.step(two_turns(1), PPOClip(epochs=2))
        after = state(trainer)
    assert [p.name for p in tmp_path.iterdir()] == ["step1"]
    async with training(files, **{**settings, "seed": 5}) as other:
        await other.restore(tmp_path / "step1")
        assert other.policy.version == 1
        _, again = await other.step(two_turns(1), PPOClip(epochs=2))
        assert same(state(other), after)
        timed = {"seconds", "tokens_per_second"}
        assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in metrics.items() if k not in timed}


@pytest.mark.parametrize("train", ["full", "lora"])
async def test_a_checkpoint_loads_with_plain_transformers_and_gives_the_same_logits(files: ModelFiles, train: str, tmp_path: Path):
    async with training(files, train=train, lr=1e-2) as trainer:
        await trainer.step(two_turns(), PPOClip())
        before = state(trainer)
        await trainer.save(tmp_path / "c")
        assert same(state(trainer), before)
        ids = torch.arange(5, 25)[None]
        with torch.no_grad():
            expected = trainer.weights.model(input_ids=ids).logits
            loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "c")
            torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
            base = AutoModelForCausalLM.from_pretrained(files.path)(input_ids=ids).logits
        assert (base - expected).abs().max() > 1e-2
    assert AutoTokenizer.from_pretrained(tmp_path / "c").vocab_size == AutoTokenizer.from_pretrained(files.path).vocab_size
    assert not [p for p in (tmp_path / "c").iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


async def test_a_checkpoint_that_does_not_fit_is_refused_by_name(files: ModelFiles, tmp_path: Path):
    async with training(files, train="top:1") as trainer:
        await trainer.save(tmp_path / "c")
        with pytest.raises(TrainerError, match="is not a checkpoint that can resume"):
            await trainer.restore(tmp_path / "nothing")
        (tmp_path / "file").write_text("")
        with pytest.raises(TrainerError, match="could not be written"):
            await trainer.save(tmp_path / "file" / "c")
    async with training(files) as other:
        before = state(other)
        with pytest.raises(TrainerError, match="trained as 'top:1', but this run trains 'tiny' as 'full'"):
            await other.restore(tmp_path / "c")
        facts = tmp_path / "c" / checkpoint.FACTS
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "schema": 99}))
        with pytest.raises(TrainerError, match="another version of agentlightning"):
            await other.restore(tmp_path / "c")
        assert same(state(other), before)


@pytest.mark.parametrize(
    ("saved", "resumed", "says"),
    [
        ({"dtype": "bfloat16"}, {"dtype": "float32"}, "dtype 'bfloat16', but this run has 'float32'. Set trainer.dtype = \"bfloat16\""),
        ({"dtype": "float32"}, {"dtype": "auto"}, None),  # this small model is in float32
        ({"train": "lora"}, {"train": "lora", "lora_alpha": 16.0}, "lora_alpha 32.0, but this run has 16.0. Set trainer.lora_alpha = 32.0"),
        ({"train": "lora"}, {"train": "lora", "lora_rank": 8}, "lora_rank 16, but this run has 8. Set trainer.lora_rank = 16"),
        ({}, {"lora_alpha": 16.0}, None),
    ],
)
async def test_a_checkpoint_of_other_settings_is_refused_with_the_way_out(
    files: ModelFiles, tmp_path: Path, saved: dict, resumed: dict, says: str | None
):
    async with training(files, **saved) as trainer:
        await trainer.step(two_turns(), PPOClip())
        await trainer.save(tmp_path / "c")
    async with training(files, **resumed) as other:
        before = state(other)
        if says is None:
            await other.restore(tmp_path / "c")
            assert other.policy.version == 1
            return
        with pytest.raises(TrainerError, match=re.escape(says)):
            await other.restore(tmp_path / "c")
        assert same(state(other), before)
        assert other.policy.version == 0


@pytest.mark.parametrize("epochs", [1, 2])
async def test_an_optimizer_step_that_fails_midway_says_whether_weights_changed(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    async with training(files) as trainer:
        await trainer.step(two_turns(), PPOClip())
        before = state(trainer)

        def fails() -> None:
            next(iter(trainer.optimizer.masters.values())).data.add_(1)
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(trainer.optimizer.adam, "step", fails)
        with pytest.raises(TrainerError, match="can't allocate memory") as raised:
            await trainer.step(two_turns(), PPOClip(epochs=epochs))
        assert isinstance(raised.value, HalfStep) == (epochs == 1)
        assert same(state(trainer), before) == (epochs == 2)


async def test_a_save_copies_neither_weights_nor_moments(files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: dict[str, torch.Tensor] = {}
    write = checkpoint.write

    def watched(folder: Path, model: Any, tokenizer: str, state: checkpoint.State, *rest: Any) -> None:
        written.update(state.tensors)
        write(folder, model, tokenizer, state, *rest)

    monkeypatch.setattr(checkpoint, "write", watched)
    async with training(files, dtype="bfloat16", critic=True) as trainer:
        await trainer.step(two_turns(), PPOClip())
        await trainer.save(tmp_path / "c")
        for name, master in trainer.optimizer.masters.items():
            assert written[f"weight.{name}"].data_ptr() == master.data_ptr()
            for kind, moment in trainer.optimizer.adam.state[master].items():
                assert written[f"{kind}.{name}"].data_ptr() == moment.data_ptr()
        before = state(trainer)
        await trainer.step(two_turns(), PPOClip())
        await trainer.restore(tmp_path / "c")
        assert same(state(trainer), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("train", ["full", "lora"])
async def test_a_save_needs_little_memory_of_the_gpu(tmp_path: Path, train: str):
    files = tiny_model(tmp_path / "model", hidden=1024, layers=8)
    async with training(files, device="cuda", train=train) as trainer:
        await trainer.step(two_turns(), PPOClip())
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        await trainer.save(tmp_path / "c")
        weights = sum(p.numel() * p.element_size() for p in trainer.weights.model.parameters())
        assert torch.cuda.max_memory_allocated() - before < weights / 4


KILLED_SAVE = """
import os, pathlib, sys
import torch
from transformers import AutoModelForCausalLM
from agentlightning.training.run_folder import RunFolder, RunState
from agentlightning_torch import checkpoint

checkpoint.save_file = lambda *_: os.kill(os.getpid(), 9)
model, state = AutoModelForCausalLM.from_pretrained(sys.argv[2]), checkpoint.State({"weight": torch.zeros(3)}, {})
with RunFolder(pathlib.Path(sys.argv[1])).new_checkpoint(RunState(step=1)) as folder:
    checkpoint.write(folder, model, sys.argv[2], state)
"""
"""Dies after the weights of a checkpoint, before the trainer's tensors."""


def test_a_save_that_was_killed_leaves_nothing_in_the_run(files: ModelFiles, tmp_path: Path):
    folder = RunFolder.create(tmp_path, "killed")
    arguments = [sys.executable, "-c", KILLED_SAVE, str(folder.path), files.path]
    assert subprocess.run(arguments, check=False, timeout=120).returncode == -signal.SIGKILL
    assert list(folder.checkpoints.rglob("model.safetensors"))
    with folder.lock():
        assert not list(folder.checkpoints.iterdir())


async def test_weights_of_16_bits_are_stepped_in_float32(files: ModelFiles):
    async with training(files, dtype="bfloat16", lr=1e-5) as trainer:
        before = state(trainer)
        for _ in range(2):
            await trainer.step(two_turns(), PPOClip())
        name = "model.layers.0.mlp.up_proj.weight"
        master = trainer.optimizer.masters[name]
        assert master.dtype == torch.float32
        assert torch.equal(trainer.optimizer.parameters[name], master.bfloat16())
        assert ((master - before[f"weight.{name}"]).abs() > 1e-6).float().mean() > 0.9  # steps far below bfloat16's resolution


async def test_16_bit_weights_correct_the_rounding_of_the_engine_by_default(files: ModelFiles):
    for dtype, correction, corrects in (("bfloat16", None, True), ("bfloat16", NoCorrection(), False), ("float32", None, None)):
        async with training(files, dtype=dtype) as trainer:
            _, metrics = await trainer.step(two_turns(), PPOClip(correction=correction))
            assert metrics.get("correction_mean") is None if corrects is None else (metrics["correction_mean"] != 1) == corrects


async def test_a_loss_without_a_ratio_is_plain_cross_entropy_in_16_bits_too(files: ModelFiles):
    """`rft` trains sampled tokens, which have log-probabilities of the engine, by cross-entropy."""
    history, turns = list(range(5, 25)), [(list(range(30, 36)), [7, 8]), (list(range(40, 46)), [9])]
    transitions = conversation(history, turns, logprobs=-4.0)
    batch = make_batch([trajectory(0, *transitions)], [np.ones(2)])
    async with training(files, dtype="bfloat16") as trainer:
        _, metrics = await trainer.step(batch, SFTLoss())
    model = AutoModelForCausalLM.from_pretrained(files.path, dtype=torch.bfloat16)
    losses = []
    for transition in transitions:
        row, size = torch.tensor([*transition.prompt_ids.tolist(), *transition.response_ids.tolist()]), len(transition.response_ids)
        with torch.no_grad():
            logits = model(row[None]).logits[0, -size - 1 : -1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, row[-size:]).item())
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=0.01)
    assert "correction_mean" not in metrics


async def test_a_model_with_soft_caps_is_trained_on_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    async with training(ModelFiles("capped", str(tmp_path)), tokens_per_pack=80) as trainer:
        assert not trainer.capabilities.forest
        assert "trains as root-to-leaf rows, not as a forest: it has attention with softcap" in caplog.text
        batch = two_turns()
        _, metrics = await trainer.step(batch, PPOClip())
        assert metrics["context_repeat"] == 4 * 36 - len(batch)


async def test_a_conversation_longer_than_a_pack_is_refused_and_nothing_changes(files: ModelFiles):
    async with training(files, tokens_per_pack=30) as trainer:
        with pytest.raises(TrainerError, match="Raise tokens_per_pack"):
            await trainer.step(two_turns(), PPOClip())
        assert trainer.policy.version == 0


async def test_a_cancelled_caller_waits_for_the_end_of_the_step(files: ModelFiles):
    async with training(files) as trainer:
        task = asyncio.create_task(trainer.step(two_turns(), PPOClip()))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert trainer.policy.version == trainer.steps == 1


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"train": "top"}, "'top:N'"),
        ({"train": "top:0"}, "'top:N'"),
        ({"schedule": "cosinus"}, "'cosine'"),
        ({"schedule": "linear", "warmup_steps": 5, "total_steps": 5}, "needs more total steps than warm-up steps"),
        ({"lr": 0.0}, "trainer.lr is 0.0"),
        ({"lr": float("nan")}, "trainer.lr is nan"),
        ({"betas": (0.9,)}, "a list of 2, each a number of at least 0 and below 1"),
        ({"betas": (0.9, 1.0)}, "a list of 2, each a number of at least 0 and below 1"),
        ({"clip_norm": 0.0}, "trainer.clip_norm"),
        ({"weight_decay": -1.0}, "trainer.weight_decay"),
        ({"warmup_steps": -1}, "trainer.warmup_steps"),
        ({"tokens_per_pack": 0}, "trainer.tokens_per_pack"),
        ({"lora_rank": 0}, "trainer.lora_rank"),
        ({"lora_alpha": 0.0}, "trainer.lora_alpha"),
        ({"dtype": "float16"}, "trainer.dtype is 'float16', which rounds small gradients to 0. Use 'bfloat16' or 'float32'"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(setting: dict, says: str):
    with pytest.raises(ConfigError, match=says.replace(".", r"\.")):
        Settings(**setting)


async def test_weights_that_an_engine_has_in_float16_are_not_trained(files: ModelFiles):
    share: dict[str, Any] = {}
    get_weights(share, files, device="cpu", dtype="float16")
    with pytest.raises(ConfigError, match="which rounds small gradients to 0"):
        await TorchTrainer.create(files, Settings(device="cpu"), share)


async def test_a_schedule_without_an_end_is_refused_where_no_run_gives_it_one(files: ModelFiles):
    with pytest.raises(ConfigError, match="'linear' needs total_steps"):
        async with training(files, schedule="linear"):
            pass


def test_the_learning_rate_warms_up_and_then_falls_to_zero():
    assert [learning_rate(1.0, "constant", 3, None, s) for s in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert [learning_rate(1.0, "linear", 1, 5, s) for s in range(6)] == [0.5, 1, 0.75, 0.5, 0.25, 0]
    assert [round(learning_rate(1.0, "cosine", 0, 4, s), 6) for s in range(5)] == [1, 0.853553, 0.5, 0.146447, 0]


@pytest.mark.parametrize("train", ["full", "lora"])
async def test_weights_are_exported_for_an_engine_with_a_probe_that_they_answer(files: ModelFiles, tmp_path: Path, train: str) -> None:
    async with training(files, train=train, lr=1e-2) as trainer:
        await trainer.step(two_turns(), PPOClip())
        policy = await trainer.export(tmp_path / "v 1")
        assert (policy.version, policy.kind, folder_of(policy)) == (1, "lora" if train == "lora" else "full", tmp_path / "v 1")
        assert trainer.policy.uri.startswith("memory:")
    probe = WeightCheck.read(tmp_path / "v 1")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "v 1" if train == "full" else files.path, dtype=torch.float32)
    if train == "lora":
        from peft import PeftModel

        assert probe is not None
        ids = torch.tensor(probe.ids)
        assert probe.difference(scored(model, ids)) > 1e-2  # the base alone is another policy
        model = PeftModel.from_pretrained(model, str(tmp_path / "v 1"))
    assert probe is not None
    assert probe.difference(scored(model, torch.tensor(probe.ids))) < 1e-5


def scored(model, ids: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(ids[None].long()).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None].long())[:, 0].numpy()
