"""Layers below the first trained one: no graph, nothing saved, and one computation for all passes of a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from test_forest_gradient import difference, gradient, random_batch, tiny_llama

from agentlightning.contracts.model import ModelFiles
from agentlightning.rl.batch.packs import cut_packs
from agentlightning.rl.loss import GSPO, PPOClip
from agentlightning_torch import frozen, trainer
from agentlightning_torch.forward import score_forest
from agentlightning_torch.frozen import FrozenStates, frozen_layers
from agentlightning_torch.optim import trained_parameters
from agentlightning_torch.trainer import Settings, TorchTrainer


@contextmanager
def calls(layer: Any) -> Iterator[list[int]]:
    """Count the tokens that go through a layer's network."""
    tokens: list[int] = []
    hook = layer.mlp.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[1]))
    yield tokens
    hook.remove()


def test_layers_below_the_first_trained_one_build_no_graph_and_save_nothing():
    model, batch = tiny_llama(), random_batch(0)
    trained_parameters(model, "top:1")
    (pack,) = cut_packs(batch, 10_000)
    saved: list[torch.Tensor] = []
    before: list[int] = []
    model.model.layers[2].register_forward_pre_hook(lambda _, inputs: before.append(len(saved) + inputs[0].requires_grad))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        scores = score_forest(model, batch, pack)
    assert scores.logprob.requires_grad
    assert before
    assert not any(before)
    assert saved


@pytest.mark.parametrize("train", ["top:1", "top:2"])
def test_kept_states_give_the_gradient_of_a_whole_pass_in_packs_of_any_size(train: str):
    model, batch = tiny_llama(), random_batch(1)
    trained_parameters(model, train)
    packs = [[pack] for pack in cut_packs(batch, int(batch.position.max()) + 1)]
    assert len(packs) > 1
    expected = gradient(model, batch, packs, lambda model, batch, packs: score_forest(model, batch, packs[0]))
    kept = FrozenStates(model, len(batch))
    (large,) = cut_packs(batch, 10_000)
    with torch.no_grad(), calls(model.model.layers[0]) as tokens:
        score_forest(model, batch, large, frozen=kept)
    assert tokens == [len(batch)]
    with calls(model.model.layers[0]) as tokens:
        found = gradient(model, batch, packs, lambda model, batch, packs: score_forest(model, batch, packs[0], frozen=kept))
    assert tokens == []
    assert difference(found, expected) < 1e-10


def test_states_of_another_imposed_length_are_kept_apart():
    model, batch = tiny_llama(), random_batch(1)
    trained_parameters(model, "top:1")
    kept = FrozenStates(model, len(batch))
    (pack,) = cut_packs(batch, 10_000)
    with torch.no_grad(), calls(model.model.layers[0]) as tokens:
        for length in (0, 100, 0, 100):
            score_forest(model, batch, pack, frozen=kept, length=length)
    assert tokens.count(len(batch)) == 2


@pytest.mark.parametrize("train", ["full", "top:3"])
def test_without_a_frozen_layer_nothing_is_kept(train: str):
    model = tiny_llama()
    trained_parameters(model, train)
    assert len(frozen_layers(model)) == 0


def test_a_layer_that_needs_more_than_the_states_below_it_has_nothing_kept():
    model = tiny_llama()
    trained_parameters(model, "top:1")
    assert len(frozen_layers(model)) == 2
    lent: list[torch.Tensor] = []
    model.model.register_forward_pre_hook(lambda *_: lent.clear())
    model.model.layers[0].mlp.register_forward_hook(lambda _module, _inputs, output: lent.append(output))
    model.model.layers[2].register_forward_hook(lambda _module, _inputs, output: output + lent[0])
    delattr(model, frozen.REPLAYS)
    assert len(frozen_layers(model)) == 0
    assert all("forward" not in vars(layer) for layer in model.model.layers)


@pytest.mark.parametrize(
    "loss", [PPOClip(kl_coef=0.1, epochs=2, minibatches=2), GSPO(epochs=2, minibatches=2)], ids=["reference", "sequences"]
)
async def test_a_step_of_several_passes_computes_frozen_layers_once_with_the_same_result(model: ModelFiles, monkeypatch, loss):
    batch = random_batch(2)
    weights: list[dict[str, torch.Tensor]] = []
    counts: list[list[int]] = []
    for keep in (True, False):
        if not keep:
            monkeypatch.setattr(trainer, "FrozenStates", lambda *_: None)
        settings = Settings(train="top:1", lr=1e-2, device="cpu", dtype="float64")
        torch_trainer = await TorchTrainer.create(model, settings, {})
        layers = torch_trainer.weights.model.model.layers
        with calls(layers[0]) as below, calls(layers[1]) as above:
            for _ in range(2):
                await torch_trainer.step(batch, loss)
        counts.append([len(below), len(above)])
        weights.append({name: parameter.detach() for name, parameter in torch_trainer.optimizer.parameters.items()})
        await torch_trainer.close()
    assert counts[0][0] == 2 + 1  # a pass of each step, and the test of the model
    assert counts[1][0] == counts[1][1]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-9, atol=1e-9)


async def test_the_reference_keeps_the_initial_values_of_trained_weights_alone(model: ModelFiles):
    batch = random_batch(3)
    torch_trainer = await TorchTrainer.create(model, Settings(train="top:1", lr=1e-2, device="cpu", dtype="float64"), {})
    inner = torch_trainer.weights.model
    initial = {name: parameter.detach().clone() for name, parameter in inner.named_parameters()}
    await torch_trainer.step(batch, PPOClip(kl_coef=0.1))
    _, metrics = await torch_trainer.step(batch, PPOClip(kl_coef=0.1))
    changed = {name: parameter.detach().clone() for name, parameter in inner.named_parameters()}
    places = {name: parameter.data_ptr() for name, parameter in inner.named_parameters()}
    assert metrics["kl"] > 0
    with torch_trainer.reference.applied():
        for name, parameter in inner.named_parameters():
            assert torch.equal(parameter, initial[name])
            assert parameter.requires_grad == (name in torch_trainer.optimizer.parameters)
            assert (parameter.data_ptr() == places[name]) != parameter.requires_grad  # frozen weights are no copy
    assert all(torch.equal(parameter, changed[name]) for name, parameter in inner.named_parameters())
    assert any(not np.array_equal(initial[name].numpy(), value.numpy()) for name, value in changed.items())
    await torch_trainer.close()
