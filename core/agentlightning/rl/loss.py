"""Settings of the losses. A trainer implements the losses that it names in its `Capabilities`; the formulas stand here.

With lp the trainer's log-probability of a sampled token, old its log-probability before the first optimiser step of the batch, rho = exp(lp
- old), A the token's advantage, w its weight in the batch and c its correction, a loss is the sum over trained tokens of w * (c * term + kl
* K - entropy * H): K estimates the KL divergence from a reference, H is the entropy of the distribution that the token was sampled from.
Tokens of groups without signal are in no term of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from agentlightning.errors import ConfigError
from agentlightning.rl.correction import Correction, Level
from agentlightning.settings import MAX, BaseSettings, NonNegativeFloat, PositiveInt, UnitInterval


@dataclass(frozen=True, kw_only=True)
class LossSettings(BaseSettings):
    """What every loss has."""

    table = "loss"
    name: str
    epochs: PositiveInt = 1
    """Passes over the batch."""
    minibatches: PositiveInt = 1
    """Optimiser steps in a pass; rollouts are dealt over them in batch order."""
    kl_coef: Annotated[float, Meta(ge=0, le=MAX, description="0 is off")] = 0.0
    """LossAggregation of the divergence from the reference: the model that the run began with (for LoRA the model without its adapter)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """K, with d = lp - reference's lp: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. The mean of k1 and of k3 is the divergence, the gradient
    of k2 is its gradient; that of k1 is 0 on average, so k1 only measures. Source: joschu.net/blog/kl-approx.html."""
    entropy_coef: Annotated[float, Meta(ge=0, le=MAX, description="0 is off")] = 0.0
    """LossAggregation of the entropy, which is raised by it."""
    correction: Correction | None = None
    """c, for what lies between who sampled and who trains; absent: 1."""

    @property
    def ratio_over(self) -> Level:
        """Whose ratio rho is: the token's own, or the geometric mean over its turn or attempt, with the gradient of the token's."""
        return "token"

    @property
    def over_pairs(self) -> bool:
        """Whether it compares rollouts in pairs, which the batch then has (`Batch.pairs`)."""
        return False

    @property
    def extras(self) -> frozenset[str]:
        """The settings of every loss that are in use; a trainer names those that it honours in its `Capabilities`."""
        used = {"kl_coef": bool(self.kl_coef), "entropy_coef": bool(self.entropy_coef), "correction": self.correction is not None}
        return frozenset(name for name, on in used.items() if on)


@dataclass(frozen=True, kw_only=True)
class PPOClip(LossSettings):
    """term = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A); where A < 0, at most -dual_clip A.

    Sources: arXiv 1707.06347 (clip), 2503.14476 (clip-higher), 1912.09729 (dual clip).
    """

    name: str = "ppo_clip"
    clip_low: Annotated[float, Meta(ge=0, le=1, description="0.2 is usual")] = 0.2
    clip_high: Annotated[float, Meta(ge=0, description="0.28 is usual")] = 0.28
    dual_clip: Annotated[float, Meta(gt=1, description="3.0 is usual")] | None = 3.0
    """None: off. Above 1."""


@dataclass(frozen=True, kw_only=True)
class GSPO(LossSettings):
    """term = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), where rho = exp(mean of lp - old over the sequence). Source: arXiv
    2507.18071.

    A sequence is one reply (`turn`), or all replies of an attempt. Which weigh the same is the batch's: with `loss_aggregation =
    "sequence_mean"` attempts do.
    """

    name: str = "gspo"
    sequence: Literal["turn", "attempt"] = "turn"
    clip_low: UnitInterval = 3e-4
    clip_high: NonNegativeFloat = 4e-4

    @property
    def ratio_over(self) -> Level:
        return self.sequence


@dataclass(frozen=True, kw_only=True)
class CISPO(LossSettings):
    """term = -stopgrad(clip(rho, 1 - clip_low, 1 + clip_high)) A lp. Source: arXiv 2506.13585."""

    name: str = "cispo"
    clip_low: UnitInterval = 1.0
    """1.0: no lower bound, as in the paper."""
    clip_high: NonNegativeFloat = 0.28


@dataclass(frozen=True, kw_only=True)
class SFTLoss(LossSettings):
    """term = -A lp, with no ratio: the cross-entropy of demonstrations, whose A is 1."""

    name: str = "sft"


@dataclass(frozen=True, kw_only=True)
class OwnLoss(LossSettings):
    """term = a function of one's own, of (logprob, old, advantage), each (tokens,) tensors of the trainer; made by `build_loss`."""

    term: Callable[[Any, Any, Any], Any]


@dataclass(frozen=True, kw_only=True)
class DPOLoss(LossSettings):
    """The mean over pairs of -log sigmoid(z), with z = beta * ((lp_c - ref_c) - (lp_r - ref_r)): lp and ref are the log-probabilities of
    all that is trained of the chosen and of the rejected rollout, now and by the reference (as for `kl`). Source: arXiv 2305.18290.

    As a sum over tokens: term = -beta * sigmoid(-z) A lp, with A = 1 on what was chosen and -1 on what was rejected, w = 1 / pairs, and z
    without gradient. Minibatches hold whole pairs; z is of the weights as they are before each gradient.
    """

    name: str = "dpo"
    beta: Annotated[float, Meta(gt=0, le=MAX, description="0.1 is usual")] = 0.1

    @property
    def over_pairs(self) -> bool:
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in sorted(self.extras):
            raise ConfigError(
                f"loss.{key} is set, and loss 'dpo' has no term for it: beta alone holds the policy near the reference; leave it out"
            )


def loss_of(algorithm: object) -> LossSettings | None:
    """The loss among an algorithm's `parts`; None where it says nothing of one."""
    parts = getattr(algorithm, "parts", None)
    return next((each for each in parts() if isinstance(each, LossSettings)), None) if parts is not None else None
