"""Names of the field for settings of LightningRL: `algorithm = "rloo"` is `{name = "lightning", advantage = "rloo"}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from agentlightning.errors import ConfigError

PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {"advantage": "grpo"},
    "dr_grpo": {"advantage": "dr_grpo", "loss_aggregation": "constant_length", "length": 1000},
    "rloo": {"advantage": "rloo"},
    "reinforce_pp": {"advantage": "reinforce_pp", "group_size": 1},
    "ppo": {"advantage": "gae", "group_size": 1},
    "gspo": {"loss": "gspo"},
    "cispo": {"loss": "cispo", "loss_aggregation": "token_mean"},
    "distillation": {"advantage": "none", "teacher_coef": 1.0, "loss_aggregation": "token_mean", "group_size": 1},
}
"""Settings of each name, which a table of that name can change. Their sources are those of the advantages and losses. `length` only scales
the gradient."""


def with_preset(algorithm: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the table of an algorithm as one of `lightning` if its name is one of the presets; else as it is."""
    name = algorithm.get("name")
    preset = PRESETS.get(name) if isinstance(name, str) else None
    return algorithm if preset is None else {**preset, **algorithm, "name": "lightning"}


def two_stages(algorithms: Sequence[Any]) -> dict[str, Any]:
    """Return the table of `algorithm = [FIRST, SECOND]`: that of the first, with the second as `then`. Raises `ConfigError`."""
    tables: list[Any] = [{"name": entry} if isinstance(entry, str) else entry for entry in algorithms]
    if len(tables) != 2 or not all(isinstance(table, Mapping) for table in tables):
        raise ConfigError(
            f"algorithm is a list of {len(tables)}. Name two algorithms, as in ['gepa', 'lightning']: first the prompts, then the weights."
        )
    first, second = cast("list[Mapping[str, Any]]", tables)
    return {**first, "then": dict(with_preset(second))}
