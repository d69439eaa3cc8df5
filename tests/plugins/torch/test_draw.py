"""Tokens are drawn by inversion of the cumulative distribution, checked against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentlightning.types import Sampling
from agentlightning_torch.draw import BLOCK, draw


class Fixed:
    """Noise of known numbers."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0)


def drawn(logits: torch.Tensor, uniform: float, **sampling) -> tuple[int, float]:
    ids, logprobs = draw(logits[None], [Sampling(max_tokens=1, **sampling)], [Fixed(uniform)])  # type: ignore[list-item]
    return ids[0], logprobs[0]


@pytest.mark.parametrize("vocabulary", [3, BLOCK, BLOCK + 1, 2 * BLOCK + 77])
def test_each_point_of_the_distribution_gives_the_token_of_its_place(vocabulary: int):
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 3
    exact = torch.from_numpy(logits.double().numpy() / 0.7).log_softmax(-1)
    cumulative = exact.exp().cumsum(-1).numpy()
    middles = np.concatenate([[0], cumulative[:-1]]) + exact.exp().numpy() / 2
    likely = np.flatnonzero(exact.exp().numpy() > 1e-6)  # narrower ones are below the rounding of float32
    for token in likely:
        index, logprob = drawn(logits, middles[token], temperature=0.7)
        assert index == token
        assert logprob == pytest.approx(float(exact[token]), abs=1e-5)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53, 1.0])
@pytest.mark.parametrize("vocabulary", [8, BLOCK + 8, 3 * BLOCK])
def test_no_token_of_probability_zero_is_drawn_at_the_ends(vocabulary: int, uniform: float):
    logits = torch.full((vocabulary,), -torch.inf)
    logits[2] = logits[5] = 0.0
    assert drawn(logits, uniform)[0] == (2 if uniform == 0 else 5)


def test_truncation_leaves_the_likeliest_tokens_and_reports_the_full_distribution():
    logits = torch.log(torch.tensor([0.1, 0.4, 0.3, 0.2]))
    assert [drawn(logits, u, top_k=2)[0] for u in (0.1, 0.5, 0.6, 0.99)] == [1, 1, 2, 2]
    assert [drawn(logits, u, top_p=0.8)[0] for u in (0.1, 0.5, 0.9)] == [1, 2, 3]
    assert drawn(logits, 0.1, top_k=2)[1] == pytest.approx(np.log(0.4), abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-50, 5e-324])
def test_a_temperature_that_float32_cannot_divide_by_is_greedy(temperature: float):
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert drawn(logits, 0.5, temperature=temperature) == drawn(logits, 0.5, temperature=0.0)
    index, logprob = drawn(logits, 0.5, temperature=1e-5)
    assert (index, logprob) == (int(logits.argmax()), 0.0)


def test_rows_do_not_depend_on_their_neighbours():
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    samplings = [Sampling(max_tokens=1), Sampling(max_tokens=1, temperature=0.0), Sampling(max_tokens=1, top_p=0.5), Sampling(max_tokens=1)]
    ids, logprobs = draw(logits, samplings, [np.random.default_rng(seed) for seed in range(4)])
    for row in range(4):
        alone = draw(logits[[row]], [samplings[row]], [np.random.default_rng(row)])
        assert (alone[0][0], alone[1][0]) == (ids[row], logprobs[row])
    assert ids[1] == int(logits[1].argmax())
