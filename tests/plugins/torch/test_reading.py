"""Log-probabilities and entropies that are read off states in chunks."""

from __future__ import annotations

import pytest
import torch

from agentlightning_torch import reading
from agentlightning_torch.reading import read


@pytest.mark.parametrize("chunk", [1, 3 * 7, 1 << 23])
def test_what_is_read_in_chunks_is_the_softmax_with_its_gradients(monkeypatch, chunk: int):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(4, 7, dtype=torch.float64)
    states, weights = torch.randn(6, 4, generator=generator, dtype=torch.float64), torch.randn(2, 6, generator=generator).double()
    states.requires_grad_()
    chosen, temperature = torch.tensor([6, 0, 3, 3, 1, 2]), torch.tensor([1.0, 0.5, 2.0, 1.0, 0.7, 1.3], dtype=torch.float64)
    every = torch.log_softmax(head(states) / temperature[:, None], -1)
    expected = every.gather(1, chosen[:, None])[:, 0], -(every.exp() * every).sum(-1)
    found = read(head, states, 7, chosen, temperature, True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    inputs = [states, *head.parameters()]
    ours, theirs = (torch.autograd.grad((weights * torch.stack(each)).sum(), inputs) for each in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3 * 7, 1 << 23])
def test_a_head_that_learns_nothing_gives_the_states_the_same_gradient(monkeypatch, chunk: int):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(4, 7, dtype=torch.float64).requires_grad_(False)
    states, weights = (torch.randn(6, size, generator=generator, dtype=torch.float64) for size in (4, 1))
    chosen, temperature = torch.tensor([6, 0, 3, 3, 1, 2]), torch.tensor([1.0, 0.5, 2.0, 1.0, 0.7, 1.3], dtype=torch.float64)
    states.requires_grad_()
    both = [read(head, states, 7, chosen, temperature, False, frozen) for frozen in (True, False)]
    torch.testing.assert_close(*both, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad((weights[:, 0] * logprob).sum(), states) for logprob, _ in both)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("chunk", [1, 1 << 23])
def test_the_entropy_has_no_gradient_unless_it_is_asked_for(monkeypatch, chunk: int, frozen: bool):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    states = torch.randn(2, 3).requires_grad_()
    logprob, entropy = read(lambda some: some, states, 3, torch.tensor([1, 1]), torch.ones(2), False, frozen)
    assert logprob.requires_grad
    assert not entropy.requires_grad


def test_half_precision_is_read_in_single():
    logprob, entropy = read(lambda some: some, torch.randn(1, 3).bfloat16(), 3, torch.tensor([1]), torch.ones(1), False)
    assert logprob.dtype == entropy.dtype == torch.float32


@pytest.mark.parametrize("gradients", [True, False])
def test_16_bits_round_the_probable_tokens_little(gradients: bool):
    """A logit of 30 rounds to 1/8 in bfloat16. Tokens of equal probability would differ by that."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(64, 50, bias=False).requires_grad_(False).bfloat16()
    states = torch.randn(20, 64, generator=generator).bfloat16()
    head.weight += states.mean(0) * 15  # every logit is large, as in a trained model
    states = (states + states.mean(0) * 3).requires_grad_(gradients)
    exact = torch.log_softmax(states.detach().double() @ head.weight.double().t(), -1)
    assert float((states @ head.weight.t()).detach().abs().max()) > 25
    chosen = exact.argmax(-1)
    logprob, entropy = read(head, states, 50, chosen, torch.ones(20), False, frozen=True)
    assert logprob.requires_grad == gradients
    assert float((logprob.detach() - exact.gather(1, chosen[:, None])[:, 0]).abs().max()) < 0.01
    assert float((entropy + (exact.exp() * exact).sum(-1)).abs().max()) < 0.02


def test_a_frozen_head_in_16_bits_gives_the_states_their_gradient():
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(64, 50, bias=False).requires_grad_(False).bfloat16()
    states, chosen = torch.randn(20, 64, generator=generator).bfloat16(), torch.arange(20)
    gradients = []
    for own, weights in ((states, head.weight), (states.double(), head.weight.double())):
        own = own.detach().requires_grad_()
        if weights is head.weight:
            logprob, _ = read(head, own, 50, chosen, torch.full((20,), 0.7), False, frozen=True)
        else:
            logprob = torch.log_softmax(own @ weights.t() / 0.7, -1).gather(1, chosen[:, None])[:, 0]
        gradients.append(torch.autograd.grad(logprob.sum(), own)[0].double())
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 0.005
