"""The Trainer contract: the backend that holds weights and takes gradient steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import CustomLoss, LossSettings
from agentlightning.contracts.model import Fit, ModelFiles, Share
from agentlightning.errors import Mismatch, UnsupportedSetting
from agentlightning.settings import BaseSettings
from agentlightning.types import Doubles, Policy, PolicyKind


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a trainer honours. Any other setting is refused before the first step (law 11)."""

    losses: frozenset[str]
    """Names of losses."""
    uris: frozenset[str]
    """Schemes under which it hands weights over: `memory`, `file`."""
    forest: bool = True
    """Whether it trains the forest; otherwise root-to-leaf rows."""
    extras: frozenset[str] = frozenset()
    """The optional settings of every loss that it honours: `kl_coef`, `entropy_coef`, `correction`."""
    custom_losses: bool = False
    """Whether it trains a `CustomLoss`."""
    max_sequence_tokens: int | None = None
    """Tokens of the longest conversation that it takes; None: any."""
    lora: bool = False
    several: PolicyKind | None = None
    """What each of several of these trainers, which share one model, makes of it for the policy that `ModelFiles.policy` names: an adapter,
    or layers of its own. None: it shares no model."""
    critic: bool = False
    """Whether it has a value head: `values`, and `Batch.returns` to learn from."""
    why_no_critic: str = "use trainer 'torch'"
    """What to do about a missing critic, for the error message."""


def check_capabilities(name: str, capabilities: Capabilities, loss: LossSettings | None, *, critic: bool) -> None:
    """Raise `UnsupportedSetting` if an algorithm needs something that trainer `name` does not honour."""
    if critic and not capabilities.critic:
        raise UnsupportedSetting(
            f"algorithm.credit or algorithm.advantage needs a critic, and trainer {name!r} has no value head: {capabilities.why_no_critic}"
        )
    if loss is None:
        return
    if not (capabilities.custom_losses if isinstance(loss, CustomLoss) else loss.name in capabilities.losses):
        raise UnsupportedSetting(
            f"algorithm.loss is {loss.name!r}, and trainer {name!r} does not have it. Use one of {', '.join(sorted(capabilities.losses))}."
        )
    for key in sorted(loss.extras - capabilities.extras):
        raise UnsupportedSetting(
            f"algorithm.loss.{key} is set, and trainer {name!r} does not honour it. Remove it, or use a trainer that does ('torch')."
        )


def check_mismatch(trainer: Trainer, batch: Batch, logprobs: Doubles) -> None:
    """Raise `Mismatch` if the trainer's log-probabilities are further than its `mismatch_limit` from the engine's.

    `logprobs`: (tokens,) under the weights before the step. Only tokens that the trainer's version sampled are compared.
    """
    compared = batch.trained & (batch.version == trainer.policy.version) & np.isfinite(batch.rollout_logprobs)
    difference = float(np.abs(logprobs[compared] - batch.rollout_logprobs[compared]).mean()) if compared.any() else 0.0
    if difference > trainer.mismatch_limit:
        raise mismatch(difference, trainer.mismatch_limit)


def mismatch(difference: float, limit: float) -> Mismatch:
    """Return the error of a batch whose log-probabilities differ by so many nats per token."""
    return Mismatch(
        f"Engine and trainer differ by {difference:.4f} in log-probability per token, above mismatch_limit = {limit:g}. Check model and "
        "dtype, and that the engine serves the last version."
    )


@dataclass(frozen=True, kw_only=True)
class TrainerSettings(BaseSettings):
    """Base of a trainer's settings: a subclass is a frozen dataclass, and its fields are the keys of the `[trainer]` table."""

    table = "trainer"

    @property
    def total_steps(self) -> int | None:
        """Steps of the learning-rate schedule; 0: there is none. Declare a field of this name to make it a setting; the run replaces its
        None with its own number of steps."""
        return 0


class Trainer(ABC):
    """Base of every trainer. Set `capabilities` and `policy` in `__init__`, or override them with properties.

    Metrics are plain floats. A metric that was not measured is absent, not zero.
    """

    Settings: ClassVar[type[TrainerSettings]] = TrainerSettings
    capabilities: Capabilities
    policy: Policy
    """The policy that the weights are now."""
    mismatch_limit: float = math.inf
    """Nats per token by which engine and trainer may differ on the tokens that this version sampled. The run sets it."""
    old_logprobs: Doubles | None = None
    """(tokens,) log-probabilities of the last batch, under the weights before its step; NaN where not trained. A run keeps them, so that
    people see the mismatch of each token. None: the batch trained nothing, or this trainer does not tell them."""

    @classmethod
    @abstractmethod
    def offers(cls, settings: Any) -> Capabilities:
        """Capabilities with these settings. Imports and loads nothing, so that a run is refused before a model loads."""

    @classmethod
    async def create(cls, model: ModelFiles, settings: Any, share: Share) -> Self:
        """Open the trainer for a run. `settings` is an instance of `Settings`. Raises `ConfigError` for settings that cannot work."""
        raise NotImplementedError(f"{cls.__qualname__} has no `create`. Add one to use this trainer in a run.")

    @classmethod
    def check_settings(cls, settings: Any) -> None:
        """Raise `ConfigError` for settings that cannot work on this machine (blocking). Loads nothing, so that a run is refused early."""

    @classmethod
    def check_model(cls, model: ModelFiles) -> Fit:
        """Tell whether this trainer takes a model, from its configuration alone (blocking)."""
        return Fit("unknown", "known only when it starts")

    @abstractmethod
    async def step(self, batch: Batch, loss: LossSettings) -> tuple[Policy, dict[str, float]]:
        """Train on a batch, and return the next version and metrics: `loss.epochs` passes of `loss.minibatches` optimizer steps each.

        A batch without a trained token (`batch.trained_tokens == 0`) trains nothing and keeps the version. A `TrainerError` (`NonFinite`
        for a loss or gradient that is not finite) leaves the weights as they were, so that a failed run keeps its finished steps. Raise
        `HalfStep` if the weights have changed or may have. Before the first optimizer step, `check_mismatch` compares the
        batch's log-probabilities with the trainer's own.
        """

    @abstractmethod
    async def save(self, folder: Path) -> None:
        """Write all state that a bitwise resume needs: weights, optimizer, schedule, RNG, version. `AutoModelForCausalLM.from_pretrained`
        loads the folder as well."""

    @abstractmethod
    async def restore(self, folder: Path) -> None:
        """Take over the state that `save` wrote. Raises `TrainerError` for a folder that does not fit."""

    async def values(self, batch: Batch) -> Doubles:
        """(tokens,) the critic's expected return before each trained token; NaN elsewhere. Only trainers with a critic have it."""
        raise UnsupportedSetting(f"Trainer {type(self).__name__!r} has no critic. Use an advantage and a credit that need none.")

    async def export(self, folder: Path) -> Policy:
        """Write the weights for an engine of another process, and return the policy with the folder as its `file:` uri.

        The new folder is a model that `from_pretrained` loads, or a peft adapter for a policy of kind `lora`. It also holds a weight check
        (`agentlightning.training.weight_sync`). Only trainers whose `uris` have `file` have it.
        """
        raise UnsupportedSetting(f"Trainer {type(self).__name__!r} writes no weights for another process. Use an engine that shares them.")

    async def close(self) -> None:
        """Release everything. A second call does nothing. Later steps raise `TrainerError`."""
