"""Settings that every loss has. `rl/loss.py` defines the notation and the formulas; a trainer implements the losses that it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from agentlightning.settings import MAX, BaseSettings, PositiveInt
from agentlightning.types import Doubles, Ints

Level = Literal["token", "turn", "attempt"]
"""A single token, one reply, or all replies of an attempt."""


@dataclass(frozen=True, kw_only=True)
class Correction(BaseSettings):
    """Base class of corrections between the policy that sampled and the one that trains (`rl/correction`)."""

    table = "loss.correction"
    name: str

    @property
    def over(self) -> Level:
        """The unit that shares one weight."""
        return "token"

    def weights(self, log_ratio: Doubles, sequence: Ints) -> Doubles:
        """(tokens,) weights from old_logprobs - rollout_logprobs (tokens,) and the number of each token's sequence (tokens,), from 0."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class LossSettings(BaseSettings):
    """Base class of all losses."""

    table = "loss"
    name: str
    epochs: PositiveInt = 1
    """Passes over the batch."""
    minibatches: PositiveInt = 1
    """Optimizer steps in a pass; rollouts are dealt over them in batch order."""
    kl_coef: Annotated[float, Meta(ge=0, le=MAX, description="0 is off")] = 0.0
    """Coefficient of the divergence from the reference: the model that the run began with (for LoRA the model without its adapter)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """K, with d = logprobs - reference_logprobs: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. The mean of k1 and of k3 is the divergence;
    the gradient of k2 is its gradient. The gradient of k1 is 0 on average, so k1 only measures. Source: joschu.net/blog/kl-approx.html."""
    entropy_coef: Annotated[float, Meta(ge=0, le=MAX, description="0 is off")] = 0.0
    """Coefficient of the entropy bonus."""
    correction: Correction | None = None
    """c, the weight against the mismatch between old_logprobs and rollout_logprobs; absent: 1, or with 16-bit weights in the torch trainer
    that of `tis`."""

    @property
    def ratio_over(self) -> Level:
        """The unit of the ratio rho: the token, or its turn or attempt. The ratio of those is a geometric mean over their tokens, and each
        token gets the gradient of its own log-probability."""
        return "token"

    @property
    def has_ratio(self) -> bool:
        """Whether it weighs the sampling policy against the trained one. False: a trainer adds no correction of its own."""
        return True

    @property
    def clip_band(self) -> tuple[float, float] | None:
        """(low, high) of the clip of rho to [1 - low, 1 + high], for metrics; None: it clips nothing."""
        return None

    @property
    def over_pairs(self) -> bool:
        """Whether it compares rollouts in pairs (`Batch.pairs`)."""
        return False

    @property
    def extras(self) -> frozenset[str]:
        """The optional settings in use, for `Capabilities.extras`."""
        used = {"kl_coef": bool(self.kl_coef), "entropy_coef": bool(self.entropy_coef), "correction": self.correction is not None}
        return frozenset(name for name, on in used.items() if on)


@dataclass(frozen=True, kw_only=True)
class CustomLoss(LossSettings):
    """Base class of losses that bring their own formula. A trainer with `Capabilities.custom_losses` calls `term`."""

    def term(self, logprobs: Any, old_logprobs: Any, advantages: Any) -> Any:
        """(tokens,) the term of each token, from three (tokens,) tensors of the trainer. Only `logprobs` carries a gradient."""
        raise NotImplementedError
