"""The Trainer contract: the backend that holds weights and takes gradient steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import CustomLoss, LossSettings
from agentlightning.errors import UnsupportedSetting
from agentlightning.types import Doubles, Policy


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
    critic: bool = False
    """Whether it has a value head: `values`, and `Batch.returns` to learn from."""
    enable_critic: str = "use trainer 'torch'"
    """How to get a critic, for the error message."""


def check_capabilities(name: str, capabilities: Capabilities, loss: LossSettings | None, *, critic: bool) -> None:
    """Raise `UnsupportedSetting` if an algorithm needs something that trainer `name` does not honour."""
    if critic and not capabilities.critic:
        raise UnsupportedSetting(
            f"algorithm.credit or algorithm.advantage needs a critic, and trainer {name!r} has no value head. To get one, "
            f"{capabilities.enable_critic}."
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


class Trainer(Protocol):
    """Metrics are plain floats; one that was not measured is absent, not zero. The class also has `offers(settings) -> Capabilities`, which
    loads nothing, so that unsupported settings are refused before a model loads."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def policy(self) -> Policy:
        """The current version of the weights."""
        ...

    async def step(self, batch: Batch, loss: LossSettings) -> tuple[Policy, dict[str, float]]:
        """Train on a batch in `loss.epochs` passes of `loss.minibatches` optimizer steps each. Returns the next version and metrics.

        A batch with nothing to train (`batch.trained_tokens == 0`) keeps the version. `NonFinite` leaves the weights unchanged."""
        ...

    async def values(self, batch: Batch) -> Doubles:
        """Return (tokens,) the critic's expected return before each trained token; NaN elsewhere. Only for trainers with a critic."""
        ...

    async def save(self, folder: Path) -> None:
        """Write all state needed to resume bitwise: weights, optimizer, schedule, RNG, version. The folder also loads with plain
        `AutoModelForCausalLM.from_pretrained`."""
        ...

    async def export(self, folder: Path) -> Policy:
        """Write the weights for an engine in another process, and a weight check (`agentlightning.training.weight_sync`), into a new
        folder. The folder holds a model that `from_pretrained` loads, or for a policy of kind `lora` an adapter in peft's format. Returns
        the policy with the folder as its `file:` uri. Only for trainers whose `uris` include `file`."""
        ...

    async def restore(self, folder: Path) -> None:
        """Restore the state that `save` wrote."""
        ...

    async def close(self) -> None: ...
