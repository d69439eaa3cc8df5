"""The losses. A trainer implements those that its `Capabilities` name.

`logprobs` are the trainer's log-probabilities of the sampled tokens, `old_logprobs` the trainer's before the first optimizer step of the
batch, and `rollout_logprobs` the engine's at sampling. With rho = exp(logprobs - old_logprobs), A the token's advantage, w its weight in
the batch and c its correction, a loss is the sum over trained tokens of

    w * (c * term + kl_coef * K - entropy_coef * H)

K estimates the KL divergence from a reference, and H is the entropy of the distribution that the token was sampled from. Tokens of
zero-variance groups are in no term of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from agentlightning.contracts.loss import CustomLoss, Level, LossSettings
from agentlightning.errors import ConfigError
from agentlightning.settings import MAX, NonNegativeFloat, UnitInterval


@dataclass(frozen=True, kw_only=True)
class ClippedLoss(LossSettings):
    """Base of losses that clip rho to [1 - clip_low, 1 + clip_high]."""

    clip_low: float
    clip_high: float

    @property
    def clip_band(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high


@dataclass(frozen=True, kw_only=True)
class PPOClip(ClippedLoss):
    """PPO's clipped loss, with separate bounds and a dual clip.

    term = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A); where A < 0, at most -dual_clip A.

    Sources: arXiv 1707.06347 (clip), 2503.14476 (clip-higher), 1912.09729 (dual clip).
    """

    name: str = "ppo_clip"
    clip_low: Annotated[float, Meta(ge=0, le=1, description="0.2 is usual")] = 0.2
    """Lower bound of the clip, below 1."""
    clip_high: Annotated[float, Meta(ge=0, description="0.28 is usual")] = 0.28
    """Upper bound of the clip, above 1."""
    dual_clip: Annotated[float, Meta(gt=1, description="3.0 is usual")] | None = 3.0
    """Bound of the loss of tokens with a negative advantage. None: no bound."""


@dataclass(frozen=True, kw_only=True)
class GSPO(ClippedLoss):
    """GSPO, a clipped loss with one ratio for each sequence.

    term = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), where rho = exp(mean of logprobs - old_logprobs over the sequence).

    A sequence is one reply (`turn`), or all replies of an attempt. `loss_aggregation` decides how much each weighs. Source: arXiv
    2507.18071.
    """

    name: str = "gspo"
    sequence: Literal["turn", "attempt"] = "turn"
    """What has a ratio: a reply, or all replies of an attempt."""
    clip_low: UnitInterval = 3e-4
    """Lower bound of the clip, below 1."""
    clip_high: NonNegativeFloat = 4e-4
    """Upper bound of the clip, above 1."""

    @property
    def ratio_over(self) -> Level:
        return self.sequence


@dataclass(frozen=True, kw_only=True)
class CISPO(ClippedLoss):
    """CISPO, a policy gradient with clipped importance weights.

    term = -stopgrad(clip(rho, 1 - clip_low, 1 + clip_high)) A logprobs. Source: arXiv 2506.13585.
    """

    name: str = "cispo"
    clip_low: UnitInterval = 1.0
    """Lower bound of the clip, below 1. 1.0: no bound, as in the paper."""
    clip_high: NonNegativeFloat = 0.28
    """Upper bound of the clip, above 1."""


@dataclass(frozen=True, kw_only=True)
class SFTLoss(LossSettings):
    """term = -A logprobs, with no ratio: the cross-entropy of demonstrations, whose A is 1."""

    name: str = "sft"

    @property
    def has_ratio(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class FunctionLoss(CustomLoss):
    """term = a function of `(logprobs, old_logprobs, advantages)`."""

    function: Callable[[Any, Any, Any], Any]

    def term(self, logprobs: Any, old_logprobs: Any, advantages: Any) -> Any:
        return self.function(logprobs, old_logprobs, advantages)


@dataclass(frozen=True, kw_only=True)
class DPOLoss(LossSettings):
    """The mean over pairs of -log sigmoid(z), with z = beta * ((lp_c - ref_c) - (lp_r - ref_r)). Here lp_c and lp_r are the
    log-probabilities of all trained tokens of the chosen and of the rejected rollout, ref_c and ref_r the reference's (see `kl_coef`).

    As a sum over tokens: term = -beta * sigmoid(-z) A logprobs, with A = 1 on the chosen rollout and -1 on the rejected one, w = 1 / pairs,
    and z without gradient. Minibatches hold whole pairs; z uses the weights before each gradient. Source: arXiv 2305.18290.
    """

    name: str = "dpo"
    beta: Annotated[float, Meta(gt=0, le=MAX, description="0.1 is usual")] = 0.1

    @property
    def has_ratio(self) -> bool:
        return False

    @property
    def over_pairs(self) -> bool:
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in sorted(self.extras):
            raise ConfigError(f"loss.{key} is set, and loss 'dpo' has no term for it. Remove it; beta keeps the policy near the reference.")
