"""Settings of the losses. A trainer implements the losses that it names in its `Capabilities`; the formulas stand here.

With lp the trainer's log-probability of a sampled token, old its log-probability before the first optimiser step of the batch,
rho = exp(lp - old), A the token's advantage and w its weight, a loss is the sum over trained tokens of w * term.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentlightning.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What every loss has."""

    name: str
    epochs: int = 1
    """Passes over the batch."""
    minibatches: int = 1
    """Optimiser steps in a pass; rollouts are dealt over them in batch order."""

    def __post_init__(self) -> None:
        for key in ("epochs", "minibatches"):
            if getattr(self, key) < 1:
                raise ConfigError(f"loss.{key} is {getattr(self, key)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class PPOClip(LossSettings):
    """term = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A); where A < 0, at most -dual_clip A.

    Sources: arXiv 1707.06347 (clip), 2503.14476 (clip-higher), 1912.09729 (dual clip).
    """

    name: str = "ppo_clip"
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = 3.0
    """None: off. Above 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_clip(self.clip_low, self.clip_high)
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ConfigError(f"loss.dual_clip is {self.dual_clip}; it must be above 1 (3.0 is usual), or absent")


@dataclass(frozen=True, kw_only=True)
class CISPO(LossSettings):
    """term = -stopgrad(clip(rho, 1 - clip_low, 1 + clip_high)) A lp. Source: arXiv 2506.13585."""

    name: str = "cispo"
    clip_low: float = 1.0
    """1.0: no lower bound, as in the paper."""
    clip_high: float = 0.28

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_clip(self.clip_low, self.clip_high)


@dataclass(frozen=True, kw_only=True)
class SFTLoss(LossSettings):
    """term = -A lp, with no ratio: the cross-entropy of demonstrations, whose A is 1."""

    name: str = "sft"


def loss_of(algorithm: object) -> LossSettings | None:
    """The loss among an algorithm's `parts`; None where it says nothing of one."""
    parts = getattr(algorithm, "parts", None)
    return next((each for each in parts() if isinstance(each, LossSettings)), None) if parts is not None else None


def _check_clip(low: float, high: float) -> None:
    if not 0 <= low <= 1:
        raise ConfigError(f"loss.clip_low is {low}; it must lie between 0 and 1 (0.2 is usual)")
    if not high >= 0:
        raise ConfigError(f"loss.clip_high is {high}; it must be 0 or more (0.28 is usual)")
