"""What a step computes besides the policy's own term: critic, divergence, entropy, corrections, ratios of sequences."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from transformers import AutoModelForCausalLM

from agentlightning.config.parts import Part
from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ConfigError, TrainerError, UnsupportedSetting
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.batch.packs import cut_packs
from agentlightning.rl.correction.icepop import IcePop
from agentlightning.rl.correction.sequence_masking import SequenceMasking
from agentlightning.rl.correction.tis import TruncatedImportanceSampling
from agentlightning.rl.loss import CISPO, GSPO, PPOClip
from agentlightning.testing.rollouts import conversation, trajectory
from agentlightning.types import Trajectory, ints
from agentlightning_torch.testing import tiny_model
from agentlightning_torch.trainer import Settings, TorchTrainer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def training(files: ModelFiles, **settings: Any) -> AsyncIterator[TorchTrainer]:
    trainer = await TorchTrainer.create(files, Settings(**{"lr": 1e-3, "device": "cpu", "dtype": "float32", **settings}), {})
    try:
        yield trainer
    finally:
        await trainer.close()


def batch_of(seed: int = 0, *, critic: bool = False, afresh: bool = False, advantages: tuple[float, ...] = (1.0, -1.0, 0.5)) -> Batch:
    """Rollouts of two turns of 4 and 6 tokens below one prompt (`afresh`: the second one below its own); targets are 1 for the first
    rollout, 0 for the others."""
    rng = np.random.default_rng(seed)
    shared, trajectories = rng.integers(5, 60, 12), list[Trajectory]()
    for index in range(len(advantages)):
        turns = [(rng.integers(5, 60, length), rng.integers(5, 60, 3)) for length in (4, 6)]
        first, second = conversation(shared, turns, id=f"c{index}", logprobs=-4.0)
        second = structs.replace(second, prompt_ids=ints(rng.integers(5, 60, 12))) if afresh else second
        trajectories.append(trajectory(index, first, second))
    learns = [(np.zeros(10), np.full(10, 1.0 if k == 0 else 0.0)) for k in range(len(advantages))]
    return make_batch(trajectories, [np.full(2, a) for a in advantages], critic=learns if critic else None)


def weights(trainer: TorchTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.optimizer.parameters.items()}


def gradient(trainer: TorchTrainer, batch: Batch, loss: LossSettings, *, updates: int = 1) -> dict[str, torch.Tensor]:
    """Of the last of some updates; the ones before it are taken."""
    trainer.optimizer.zero()
    update = trainer._update(batch, loss)
    update.prepare()
    for number in range(updates):
        update.gradient(0)
        if number + 1 < updates:
            update.norms.append(trainer.optimizer.step(1e-3))
    return {name: p.grad.clone() for name, p in trainer.optimizer.parameters.items() if p.grad is not None}


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-6)


async def test_a_critic_learns_its_targets_and_leaves_the_policy_as_it_would_have_been(files: ModelFiles) -> None:
    async with training(files) as alone, training(files, critic=True, critic_lr=1e-2, value_clip=None) as both:
        batch = batch_of(critic=True)
        assert np.isnan((await both.values(batch))[~batch.trained]).all()
        assert (await both.values(batch))[batch.trained].tolist() == [0.0] * 30  # a fresh critic expects nothing
        losses = []
        for _ in range(30):
            await alone.step(batch_of(), PPOClip())
            _, metrics = await both.step(batch, PPOClip())
            losses.append(metrics["value_loss"])
        close(weights(alone), weights(both))
        values, returns = await both.values(batch), batch.returns
        assert returns is not None
        assert losses[0] == pytest.approx(1 / 6)  # the mean of half the square of 1 over a third of the tokens
        assert losses[-1] < 0.05  # what is left is the first tokens, whose targets differ
        best = returns.copy()
        shared = batch.trained & (batch.parent == 11)  # the first tokens of all rollouts are expected from one state
        best[shared] = returns[shared].mean()
        np.testing.assert_allclose(values[batch.trained], best[batch.trained], atol=0.5)
        assert values[shared].std() == pytest.approx(0)


@pytest.mark.parametrize("learning", [1, 0], ids=["one minibatch has targets", "none has"])
async def test_a_minibatch_without_a_target_leaves_the_critic_alone_and_trains_the_policy(files: ModelFiles, learning: int) -> None:
    """As with `advantage = {write = "gae", "*" = "grpo"}`, where no trained token of a minibatch is of `write`."""
    async with training(files) as alone, training(files, critic=True) as both:
        batch = batch_of(critic=True)
        assert batch.returns is not None
        rollout = np.where(batch.trained, batch.transition_rollout[batch.transition], -1)
        targets = replace(batch, returns=np.where(rollout < learning, batch.returns, np.nan))
        assert both.critic is not None
        before = [p.detach().clone() for p in both.critic.parameters()]
        await alone.step(batch_of(), PPOClip(minibatches=3))
        _, metrics = await both.step(targets, PPOClip(minibatches=3))
        close(weights(alone), weights(both))
        moved = any(not torch.equal(p, old) for p, old in zip(both.critic.parameters(), before, strict=True))
        assert ("value_loss" in metrics, moved) == (bool(learning), bool(learning))
        assert both.critic_optimizer is not None
        assert {float(s["step"]) for s in both.critic_optimizer.adam.state.values()} == ({1.0} if learning else set())


async def test_a_step_moves_a_value_no_further_than_its_clip_is_worth(files: ModelFiles) -> None:
    """Values that lie further from where they were than the clip have no gradient, where that would bring them to the target."""
    async with training(files, critic=True, value_clip=0.05) as trainer:
        batch = batch_of(critic=True)
        before = np.where(batch.trained, -1.0, np.nan)  # far below what the critic says (0) and what it learns (0 and 1)
        update = trainer._update(replace(batch, value=before), PPOClip())
        update.prepare()
        update.gradient(0)
        assert trainer.critic is not None
        target = np.where(batch.transition_rollout[batch.transition[batch.trained]] == 0, 1.0, 0.0)
        expected = np.maximum((0 - target) ** 2, (-1 + 0.05 - target) ** 2).mean() / 2
        assert update.sums["value_loss"] == pytest.approx(expected, rel=1e-5)
        assert trainer.critic.outer.bias.grad is not None
        assert float(trainer.critic.outer.bias.grad.abs().sum()) == 0  # the clipped term is the larger one everywhere


async def test_a_checkpoint_with_a_critic_goes_on_bitwise(files: ModelFiles, tmp_path: Path) -> None:
    async with training(files, critic=True) as one, training(files, critic=True) as other, training(files) as without:
        batch = batch_of(critic=True)
        await one.step(batch, PPOClip(epochs=2))
        await one.save(tmp_path / "checkpoint")
        await one.step(batch, PPOClip(epochs=2))
        await other.restore(tmp_path / "checkpoint")
        await other.step(batch, PPOClip(epochs=2))
        assert all((a == b).all() for a, b in zip(weights(one).values(), weights(other).values(), strict=True))
        assert (await one.values(batch))[batch.trained].tolist() == (await other.values(batch))[batch.trained].tolist()
        await without.save(tmp_path / "bare")
        with pytest.raises(TrainerError, match="has different parameters"):
            await one.restore(tmp_path / "bare")
        with pytest.raises(UnsupportedSetting, match=r"no value head: set trainer\.critic = true"):
            await without.values(batch)


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
async def test_the_divergence_is_measured_from_the_model_that_the_run_began_with(files: ModelFiles, train: str, estimator: Any) -> None:
    async with training(files, train=train) as trainer:
        loss = PPOClip(kl_coef=0.3, kl_estimator=estimator)
        _, first = await trainer.step(batch_of(), loss)
        assert first["kl"] == pytest.approx(0, abs=1e-6)
        _, second = await trainer.step(batch_of(1), loss)
        began = AutoModelForCausalLM.from_pretrained(files.path, dtype=torch.float32)
        batch = batch_of(2)
        with torch.no_grad():
            now = {tuple(s.index): s.logprob for s, _ in trainer._scores(trainer.weights.model, batch, None, False)}
            then = {tuple(s.index): s.logprob for s, _ in trainer._scores(began, batch, None, False)}
        d = torch.cat([now[key] - then[key] for key in now])
        expected = {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) - 1 + d}[estimator].mean()
        _, third = await trainer.step(batch, loss)
        assert abs(second["kl"]) > 1e-4
        assert third["kl"] == pytest.approx(float(expected), rel=1e-3)


async def test_divergence_and_entropy_add_their_own_gradients_with_the_weights_of_the_tokens(files: ModelFiles) -> None:
    async with training(files) as trainer:
        for number in range(3):
            await trainer.step(batch_of(number), CISPO())
        batch, base = batch_of(5), CISPO()
        plain = gradient(trainer, batch, base)
        with_both = gradient(trainer, batch, CISPO(kl_coef=0.2, kl_estimator="k2", entropy_coef=0.1))
        trainer.optimizer.zero()
        began = AutoModelForCausalLM.from_pretrained(files.path, dtype=torch.float32)
        for (scores, _), (reference, _) in zip(
            trainer._scores(trainer.weights.model, batch, None, True), trainer._scores(began, batch, None, False), strict=True
        ):
            weight = torch.from_numpy(batch.weight[scores.index]).to(scores.logprob)
            d = scores.logprob - reference.logprob.detach()
            (weight * (0.2 * d**2 / 2 - 0.1 * scores.entropy)).sum().backward()
        extra = {name: p.grad.clone() for name, p in trainer.optimizer.parameters.items()}
        assert max(float(v.abs().max()) for v in extra.values()) > 1e-4
        close(with_both, {name: plain[name] + extra[name] for name in plain})


async def test_an_entropy_bonus_raises_the_entropy(files: ModelFiles) -> None:
    after = {}
    for bonus in (0.0, 1.0):
        async with training(files) as trainer:
            for _ in range(6):
                _, metrics = await trainer.step(batch_of(), PPOClip(entropy_coef=bonus))
            after[bonus] = metrics["entropy"]
    assert after[1.0] > after[0.0] + 0.05


@pytest.mark.parametrize("sequence", ["turn", "attempt"])
async def test_the_ratio_of_a_sequence_is_decided_over_all_its_packs(files: ModelFiles, sequence: Any) -> None:
    loss = GSPO(sequence=sequence, epochs=2, clip_low=0.5, clip_high=0.5)
    found = []
    for budget in (4096, 20):
        async with training(files, tokens_per_pack=budget) as trainer:
            batch = batch_of(afresh=True)
            assert len(cut_packs(batch, budget)) == (1 if budget > 100 else 5)
            found.append(gradient(trainer, batch, loss, updates=2))
    close(*found)


async def test_corrections_multiply_the_policys_term_and_are_measured(files: ModelFiles) -> None:
    async with training(files) as trainer:
        batch = batch_of()
        with torch.no_grad():
            ((scores, _),) = list(trainer._scores(trainer.weights.model, batch, None, False))
        recorded = batch.rollout_logprobs.copy()
        recorded[scores.index] = scores.logprob.numpy()
        off = np.zeros(len(scores.index))
        off[::3] = 1.5
        recorded[scores.index] -= off.astype(np.float32)
        batch = replace(batch, rollout_logprobs=recorded)
        plain = gradient(trainer, batch, CISPO())
        for correction, factor in (
            (TruncatedImportanceSampling(clip=2.0), np.where(off > 0, 2.0, 1.0)),
            (IcePop(low=0.5, high=2.0), np.where(off > 0, 0.0, 1.0)),
        ):
            weight = batch.weight.copy()
            weight[scores.index] *= factor
            corrected = gradient(trainer, batch, CISPO(correction=correction))
            close(corrected, gradient(trainer, replace(batch, weight=weight), CISPO()))
            close(corrected, gradient(trainer, batch, CISPO(correction=correction, minibatches=1, epochs=2)))  # decided before the step
            assert max(float((corrected[n] - plain[n]).abs().max()) for n in plain) > 1e-4
        _, metrics = await trainer.step(batch, CISPO(correction=IcePop()))
        assert metrics["correction_dropped"] == pytest.approx((off > 0).mean())
        assert metrics["correction_mean"] == pytest.approx((off == 0).mean(), abs=1e-4)


async def test_a_masked_reply_is_left_out_whole(files: ModelFiles) -> None:
    async with training(files) as trainer:
        batch = batch_of()
        with torch.no_grad():
            ((scores, _),) = list(trainer._scores(trainer.weights.model, batch, None, False))
        recorded = batch.rollout_logprobs.copy()
        recorded[scores.index] = scores.logprob.numpy()
        wrong = scores.index[batch.transition[scores.index] == 0]
        recorded[wrong] -= 0.5
        _, metrics = await trainer.step(replace(batch, rollout_logprobs=recorded), CISPO(correction=SequenceMasking(low=0.9, high=1.1)))
        assert metrics["correction_dropped"] == pytest.approx(len(wrong) / len(scores.index))


def squared(logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    """A loss of one's own, as a function."""
    return -scale * advantages * logprobs - (logprobs - old_logprobs).square()


async def test_a_loss_of_ones_own_is_a_function_with_settings_besides_those_of_every_loss(files: ModelFiles) -> None:
    table = {"name": f"{__name__}:squared", "scale": 0.5, "epochs": 2, "entropy_coef": 0.1, "correction": {"name": "tis", "clip": 1.5}}
    loss = Part.parse("losses", table, "algorithm.loss").make()
    assert (loss.epochs, loss.entropy_coef, loss.extras) == (2, 0.1, {"entropy_coef", "correction"})
    for wrong in ({"scal": 1.0}, {"epoch": 2}):
        with pytest.raises(ConfigError, match=f"Unknown key '{next(iter(wrong))}'"):
            Part.parse("losses", {"name": f"{__name__}:squared", **wrong}, "algorithm.loss").make()
    async with training(files) as trainer:
        batch = batch_of()
        found = gradient(trainer, batch, Part.parse("losses", {"name": squared, "scale": 0.5}, "algorithm.loss").make())
        half = replace(batch, advantage=batch.advantage / 2)  # at the first update the square has no gradient
        close(found, gradient(trainer, half, CISPO()))
        _, metrics = await trainer.step(batch, loss)
        assert "ratio_mean" in metrics
        assert "clip_fraction" not in metrics, "nothing is clipped, so there is nothing to measure"


def test_settings_of_a_critic_are_checked() -> None:
    for bad in ({"critic_lr": 0.0}, {"value_clip": -0.2}):
        with pytest.raises(ConfigError, match=f"trainer.{next(iter(bad))}"):
            Settings(**bad)  # type: ignore[arg-type]
