"""Direct preference optimisation with the torch trainer: the gradient is that of the plain formula over rows, whatever the split."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agentlightning.algorithms.dpo import preferred
from agentlightning.contracts.batch import Batch
from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import TrainerError
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.batch.packs import cut_packs
from agentlightning.rl.loss import DPOLoss, PPOClip
from agentlightning.types import Trajectory
from agentlightning_torch.trainer import Settings, TorchTrainer
from world import two_groups

PAIRS = [(0, 1), (3, 2), (4, 5)]
"""Two of one group, and one of another."""
STEP = 0.3
"""Learning rate of the plain steps that the gradients are compared along."""


def batch_of(pairs: list[tuple[int, int]]) -> Batch:
    some = two_groups()
    return make_batch(some, preferred(some, pairs), loss_aggregation="pair_mean", pairs=pairs)


def plain(model: Any, rollout: Trajectory) -> torch.Tensor:
    """The log-probability of all replies of a rollout, each a row of its own."""
    total = torch.zeros((), dtype=torch.float64)
    for t in rollout.transitions:
        row = torch.tensor([*t.prompt_ids.tolist(), *t.response_ids.tolist()])
        logits = model(input_ids=row[None]).logits[0, :-1] / t.temperature
        total = total + logits.log_softmax(-1).gather(1, row[1:, None])[len(t.prompt_ids) - 1 :].sum()
    return total


def margins(model: Any, reference: Any, beta: float, pairs: list[tuple[int, int]]) -> torch.Tensor:
    """(pairs,) z, as in the paper."""
    some = two_groups()
    with torch.no_grad():
        ref = [plain(reference, each) for each in some]
    gain = [plain(model, each) - r for each, r in zip(some, ref, strict=True)]
    return torch.stack([beta * (gain[better] - gain[worse]) for better, worse in pairs])


def moved(model: Any) -> Any:
    """The model, away from where it began."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return model


@asynccontextmanager
async def training(model: ModelFiles, **settings: Any) -> AsyncIterator[tuple[TorchTrainer, list[dict[str, torch.Tensor]]]]:
    """A trainer in float64 whose optimiser takes plain steps, and the gradients of these."""
    trainer = await TorchTrainer.create(model, Settings(**{"device": "cpu", "dtype": "float64", **settings}), {})
    found: list[dict[str, torch.Tensor]] = []

    def step(lr: float) -> float:
        parameters = trainer.optimizer.parameters
        found.append({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})
        with torch.no_grad():
            for name, p in parameters.items():
                p -= STEP * found[-1][name]
        trainer.optimizer.zero()
        return 0.0

    trainer.optimizer.step = step  # type: ignore[method-assign]
    try:
        yield trainer, found
    finally:
        await trainer.close()


@pytest.mark.parametrize("tokens_per_pack", [4096, 24], ids=["one pack", "several packs"])
@pytest.mark.parametrize(
    ("epochs", "parts"), [(1, [[0, 1, 2]]), (2, [[0, 1, 2]]), (2, [[0, 2], [1]])], ids=["one", "epochs", "minibatches"]
)
async def test_the_gradient_is_that_of_the_plain_formula(model: ModelFiles, tokens_per_pack: int, epochs: int, parts: list[list[int]]):
    batch, loss = batch_of(PAIRS), DPOLoss(beta=0.4, epochs=epochs, minibatches=len(parts))
    assert (len(cut_packs(batch, tokens_per_pack)) == 1) == (tokens_per_pack > 100)
    reference = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float64)
    by_hand = moved(AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float64))
    expected, seen, losses = [], [], []
    for part in parts * epochs:
        z = margins(by_hand, reference, 0.4, [PAIRS[k] for k in part])
        value = -torch.nn.functional.logsigmoid(z).sum() / len(PAIRS)
        by_hand.zero_grad()
        (value * len(parts)).backward()  # every minibatch is an estimate of the full loss
        expected.append({name: p.grad.clone() for name, p in by_hand.named_parameters() if p.grad is not None})
        with torch.no_grad():
            for p in by_hand.parameters():
                p -= STEP * (0 if p.grad is None else p.grad)
        seen += z.tolist()
        losses.append(float(value.detach()))
    async with training(model, tokens_per_pack=tokens_per_pack) as (trainer, found):
        moved(trainer.weights.model)
        _, metrics = await trainer.step(batch, loss)
    assert metrics["loss"] == pytest.approx(sum(losses) / epochs, rel=1e-6)
    assert metrics["dpo_margin"] == pytest.approx(np.mean(seen), rel=1e-6)
    assert metrics["dpo_accuracy"] == np.mean(np.array(seen) > 0)
    assert min(seen) < -0.1, "both signs, and far from the middle"
    assert max(seen) > 0.1
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for name, gradient in theirs.items():  # norms and rotary angles are float32 inside transformers, whatever the weights are
            assert (ours[name] - gradient).norm() / gradient.norm() < 1e-5, name


async def test_the_reference_of_an_adapter_is_the_model_without_it(model: ModelFiles):
    async with training(model, train="lora") as (trainer, _):
        _, first = await trainer.step(batch_of(PAIRS), DPOLoss(beta=0.4))
        assert (first["dpo_margin"], first["dpo_accuracy"]) == (0, 0), "a fresh adapter changes nothing"
        assert first["loss"] == pytest.approx(np.log(2))
        _, second = await trainer.step(batch_of(PAIRS), DPOLoss(beta=0.4))
        assert second["dpo_margin"] > 0
        assert second["loss"] < first["loss"]


async def test_what_is_preferred_becomes_likelier_than_the_rejected_against_the_reference(model: ModelFiles):
    trainer = await TorchTrainer.create(model, Settings(device="cpu", dtype="float32", lr=1e-3), {})
    try:
        for _ in range(20):
            _, metrics = await trainer.step(batch_of(PAIRS), DPOLoss())
    finally:
        await trainer.close()
    assert metrics["dpo_accuracy"] == 1
    assert metrics["loss"] < 0.2


async def test_pairs_and_the_loss_that_compares_them_go_together(model: ModelFiles):
    some = two_groups()
    async with training(model) as (trainer, found):
        with pytest.raises(TrainerError, match="Loss 'dpo' received a batch with no pairs"):
            await trainer.step(make_batch(some, [np.ones(2)] * len(some)), DPOLoss())
        with pytest.raises(TrainerError, match="Loss 'ppo_clip' received a batch with pairs"):
            await trainer.step(batch_of(PAIRS), PPOClip())
        policy, metrics = await trainer.step(batch_of([]), DPOLoss())
        assert (policy.version, metrics["tokens_trained"], found) == (0, 0, [])
