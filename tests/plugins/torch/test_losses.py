"""Each loss against its formula in `agentlightning.rl.loss`, computed in numpy, and its gradient against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentlightning.rl.loss import CISPO, GSPO, DPOLoss, PPOClip, SFTLoss
from agentlightning_torch.losses import LOSSES, term_of

RNG = np.random.default_rng(0)
OLD = RNG.uniform(-4, -0.1, 200)
NOW = OLD + RNG.normal(0, 0.8, 200)
ADVANTAGE = RNG.normal(0, 1, 200)


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
    term = term_of(SFTLoss())(now, torch.full((200,), torch.nan), torch.ones(200))
    np.testing.assert_allclose(term.detach().numpy(), -NOW)
    (gradient,) = torch.autograd.grad(term.sum(), now)
    assert (gradient == -1).all()


@pytest.mark.parametrize("settings", [PPOClip(), PPOClip(dual_clip=None), PPOClip(dual_clip=1.5, clip_low=0.1, clip_high=0.5)])
def test_ppo_clip_is_its_formula_and_its_gradient_the_slope(settings: PPOClip):
    now = torch.tensor(NOW, requires_grad=True)
    term = term_of(settings)(now, torch.tensor(OLD), torch.tensor(ADVANTAGE))
    np.testing.assert_allclose(term.detach().numpy(), ppo(settings, NOW), rtol=1e-12)
    (gradient,) = torch.autograd.grad(term.sum(), now)
    step = 1e-6
    slope = (ppo(settings, NOW + step) - ppo(settings, NOW - step)) / (2 * step)
    np.testing.assert_allclose(gradient.numpy(), slope, rtol=1e-6, atol=1e-8)
    assert (gradient == 0).any()  # some are clipped
    assert (gradient != 0).any()


@pytest.mark.parametrize("settings", [CISPO(), CISPO(clip_low=0.2, clip_high=0.1)])
def test_cispo_keeps_the_gradient_of_every_token_and_bounds_its_weight(settings: CISPO):
    now = torch.tensor(NOW, requires_grad=True)
    term = term_of(settings)(now, torch.tensor(OLD), torch.tensor(ADVANTAGE))
    weight = np.clip(np.exp(NOW - OLD), 1 - settings.clip_low, 1 + settings.clip_high)
    np.testing.assert_allclose(term.detach().numpy(), -weight * ADVANTAGE * NOW, rtol=1e-12)
    (gradient,) = torch.autograd.grad(term.sum(), now)
    np.testing.assert_allclose(gradient.numpy(), -weight * ADVANTAGE, rtol=1e-12)
