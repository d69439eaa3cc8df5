"""Each loss against its formula in `agentlightning.rl.loss`, computed in numpy, and its gradient against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentlightning.rl.loss import CISPO, GSPO, DPOLoss, PPOClip, SFTLoss
from agentlightning_torch.losses import LOSSES, TermInputs, term

RNG = np.random.default_rng(0)
OLD = RNG.uniform(-4, -0.1, 200)
NOW = OLD + RNG.normal(0, 0.8, 200)
ADVANTAGE = RNG.normal(0, 1, 200)


def inputs(now: torch.Tensor, **others: torch.Tensor) -> TermInputs:
    return TermInputs(**{"logprobs": now, "old_logprobs": torch.tensor(OLD), "advantages": torch.tensor(ADVANTAGE), **others})


def ppo(s: PPOClip, now: np.ndarray) -> np.ndarray:
    rho = np.exp(now - OLD)
    surrogate = np.minimum(rho * ADVANTAGE, np.clip(rho, 1 - s.clip_low, 1 + s.clip_high) * ADVANTAGE)
    if s.dual_clip is not None:
        surrogate = np.where(ADVANTAGE < 0, np.maximum(surrogate, s.dual_clip * ADVANTAGE), surrogate)
    return -surrogate


def test_every_named_loss_has_settings_of_its_name():
    assert set(LOSSES) == {PPOClip().name, CISPO().name, GSPO().name, SFTLoss().name, DPOLoss().name}


def test_the_loss_of_demonstrations_has_no_ratio():
    now = torch.tensor(NOW, requires_grad=True)
    value = term(SFTLoss(), inputs(now, old_logprobs=torch.full((200,), torch.nan), advantages=torch.ones(200)))
    np.testing.assert_allclose(value.detach().numpy(), -NOW)
    (gradient,) = torch.autograd.grad(value.sum(), now)
    assert (gradient == -1).all()


@pytest.mark.parametrize("settings", [PPOClip(), PPOClip(dual_clip=None), PPOClip(dual_clip=1.5, clip_low=0.1, clip_high=0.5)])
def test_ppo_clip_is_its_formula_and_its_gradient_the_slope(settings: PPOClip):
    now = torch.tensor(NOW, requires_grad=True)
    value = term(settings, inputs(now))
    np.testing.assert_allclose(value.detach().numpy(), ppo(settings, NOW), rtol=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), now)
    step = 1e-6
    slope = (ppo(settings, NOW + step) - ppo(settings, NOW - step)) / (2 * step)
    np.testing.assert_allclose(gradient.numpy(), slope, rtol=1e-6, atol=1e-8)
    assert (gradient == 0).any()  # some are clipped
    assert (gradient != 0).any()


@pytest.mark.parametrize("settings", [CISPO(), CISPO(clip_low=0.2, clip_high=0.1)])
def test_cispo_keeps_the_gradient_of_every_token_and_bounds_its_weight(settings: CISPO):
    now = torch.tensor(NOW, requires_grad=True)
    value = term(settings, inputs(now))
    weight = np.clip(np.exp(NOW - OLD), 1 - settings.clip_low, 1 + settings.clip_high)
    np.testing.assert_allclose(value.detach().numpy(), -weight * ADVANTAGE * NOW, rtol=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), now)
    np.testing.assert_allclose(gradient.numpy(), -weight * ADVANTAGE, rtol=1e-12)


@pytest.mark.parametrize("settings", [GSPO(), GSPO(clip_low=0.1, clip_high=0.2)])
def test_gspo_has_the_ratio_of_the_sequence_and_the_gradient_of_the_token(settings: GSPO):
    now = torch.tensor(NOW, requires_grad=True)
    log_ratios = RNG.normal(0, 0.2, 200)
    value = term(settings, inputs(now, sequence_log_ratios=torch.tensor(log_ratios)))
    rho = np.exp(log_ratios)
    clipped = np.clip(rho, 1 - settings.clip_low, 1 + settings.clip_high)
    np.testing.assert_allclose(value.detach().numpy(), -np.minimum(rho * ADVANTAGE, clipped * ADVANTAGE), rtol=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), now)
    free = rho * ADVANTAGE <= clipped * ADVANTAGE
    np.testing.assert_allclose(gradient.numpy(), np.where(free, -rho * ADVANTAGE, 0.0), rtol=1e-12, atol=1e-15)


def test_dpo_has_the_gradient_of_its_pair_and_no_value_of_its_own():
    now, margins = torch.tensor(NOW, requires_grad=True), RNG.normal(0, 1, 200)
    value = term(DPOLoss(beta=0.5), inputs(now, pair_margins=torch.tensor(margins)))
    assert (value == 0).all()
    (gradient,) = torch.autograd.grad(value.sum(), now)
    np.testing.assert_allclose(gradient.numpy(), -0.5 / (1 + np.exp(margins)) * ADVANTAGE, rtol=1e-12)
