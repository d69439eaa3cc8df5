"""The Trainer contract: the backend that holds weights and takes gradient steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from agentlightning.errors import UnsupportedSetting
from agentlightning.types import Policy

if TYPE_CHECKING:
    from agentlightning.rl.batch.build import Batch
    from agentlightning.rl.loss import LossSettings


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a trainer honours. A setting outside it is refused before the first step (law 11)."""

    losses: frozenset[str]
    """Names of loss settings."""
    uris: frozenset[str]
    """Schemes under which it hands weights over: `memory`, `file`."""
    forest: bool = True
    """Whether it trains the forest; otherwise root-to-leaf rows."""
    extras: frozenset[str] = frozenset()
    """Which of `kl_coef`, `entropy_coef` and `correction`, settings of every loss, it honours."""
    own_losses: bool = False
    """Whether it takes the settings of a loss that bring their `term(logprob, old, advantage)` along."""
    max_sequence_tokens: int | None = None
    """Tokens of the longest conversation that it takes; None: any."""
    lora: bool = False
    critic: bool = False
    """Whether it has a value head: `values`, and `Batch.returns` to learn from."""
    why_no_critic: str = "it has none"
    """What to do about it, for the message."""


def check_capabilities(name: str, able: Capabilities, loss: LossSettings | None, *, critic: bool) -> None:
    """`UnsupportedSetting` for what an algorithm asks and trainer `name` does not honour."""
    if critic and not able.critic:
        raise UnsupportedSetting(
            f"algorithm.credit or algorithm.advantage needs a critic, and trainer {name!r}, as it is set, has no value head: "
            f"{able.why_no_critic}"
        )
    if loss is None:
        return
    if not (able.own_losses if hasattr(loss, "term") else loss.name in able.losses):
        raise UnsupportedSetting(
            f"algorithm.loss is {loss.name!r}, which trainer {name!r} does not have; it has: {', '.join(sorted(able.losses))}"
        )
    for key in sorted(loss.extras - able.extras):
        raise UnsupportedSetting(
            f"algorithm.loss.{key} is set, and trainer {name!r} does not honour it; leave it out, or use a trainer that does ('torch')"
        )


class Trainer(Protocol):
    """Metrics are plain floats; one that was not measured is absent, not zero. The class has `offers(settings) -> Capabilities`, which
    imports and loads nothing: what is not honoured is refused before a model loads."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def policy(self) -> Policy:
        """What the weights are now."""
        ...

    async def step(self, batch: Batch, loss: LossSettings) -> tuple[Policy, dict[str, float]]:
        """Train on a batch: `loss.epochs` passes of `loss.minibatches` optimiser steps each. Returns the next version and metrics. A
        batch without signal (`batch.trained_tokens == 0`) trains nothing and keeps the version. `NonFinite` leaves the weights as
        they were."""
        ...

    async def values(self, batch: Batch) -> NDArray[np.float64]:
        """(tokens,) what the critic expects of the return before each trained token; NaN elsewhere. Only of a trainer with a critic."""
        ...

    async def save(self, folder: Path) -> None:
        """Write all state needed to go on bitwise: weights, optimiser, schedule, RNG, version. The folder also loads with plain
        `AutoModelForCausalLM.from_pretrained`."""
        ...

    async def export(self, folder: Path) -> Policy:
        """Write the weights for an engine of another process, with a probe (`agentlightning.training.weight_sync`) in the new folder: a
        model that `from_pretrained` loads, or for a policy of kind `lora` an adapter as peft writes it. Returns the policy with the
        folder as its `file:` uri. Only of a trainer whose `uris` have `file`."""
        ...

    async def restore(self, folder: Path) -> None:
        """Take up the state of `save`."""
        ...

    async def close(self) -> None: ...
