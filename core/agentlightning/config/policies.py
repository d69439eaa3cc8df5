"""The table `[policies]`: several policies in one run, each with agents of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentlightning.config.presets import with_preset
from agentlightning.contracts.policies import PolicyChoice
from agentlightning.errors import ConfigError
from agentlightning.settings import BaseSettings
from agentlightning.types import JSON

NAME = "letters, digits, '-' and '_', because it becomes the name of an adapter, of metrics and of a folder"


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(BaseSettings):
    """One of several policies."""

    agents: tuple[str, ...] = ()
    """Names or patterns of the agents whose calls it answers. It also answers calls for a model of its own name."""
    train: bool = True
    """False freezes it: a partner or an opponent of the trained policies."""
    weights: str | None = None
    """Folder of a frozen policy's weights: a LoRA adapter, or a full model like the run's. Absent: it is the model as it is."""
    algorithm: dict[str, JSON] = field(default_factory=dict[str, JSON])
    """Settings of `[algorithm]` that differ for this policy, such as credit and advantage."""
    trainer: dict[str, JSON] = field(default_factory=dict[str, JSON])
    """Settings of `[trainer]` that differ for this policy, such as `lr` and `lora_rank`."""


def check_policies(policies: Mapping[str, PolicyConfig]) -> None:
    """Raise `ConfigError` for policies that contradict each other."""
    owners: dict[str, str] = {}
    for name, policy in policies.items():
        if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
            raise ConfigError(f"policies has the name {name!r}. Use {NAME}.")
        if name == "main":
            raise ConfigError("policies has the name 'main', which is that of a run's only policy. Use another name.")
        if policy.weights is not None and policy.train:
            raise ConfigError(
                f"policies.{name}.weights is {policy.weights!r}, but a trained policy starts as the model itself. Set "
                f"policies.{name}.train = false, or remove weights."
            )
        if not policy.train and (policy.algorithm or policy.trainer):
            key = "algorithm" if policy.algorithm else "trainer"
            raise ConfigError(f"policies.{name}.{key} has no effect, because train = false. Remove it.")
        if "name" in policy.trainer:
            raise ConfigError(f"policies.{name}.trainer.name is set, but all policies share one trainer. Remove it.")
        for pattern in policy.agents:
            if owners.setdefault(pattern, name) != name:
                raise ConfigError(f"policies {owners[pattern]!r} and {name!r} both have agent {pattern!r}. Remove it from one of them.")
    if policies and not any(policy.train for policy in policies.values()):
        raise ConfigError(f"policies: {', '.join(policies)} are all frozen, so nothing would be trained. Remove train = false from one.")


def policy_choice(policies: Mapping[str, PolicyConfig]) -> PolicyChoice:
    """Return which policy answers a call."""
    return PolicyChoice({name: policy.agents for name, policy in policies.items()})


def with_own(shared: Mapping[str, JSON], own: Mapping[str, JSON]) -> dict[str, Any]:
    """Return the table `[algorithm]` or `[trainer]` of one policy. An algorithm of another name brings its own settings."""
    own = with_preset(own)
    return {**shared, **own} if own.get("name", shared.get("name")) == shared.get("name") else dict(own)


def absolute_weights(policies: Mapping[str, PolicyConfig], base: Path) -> dict[str, PolicyConfig]:
    """Return the policies with absolute paths of their weights."""
    return {
        name: policy if policy.weights is None else replace(policy, weights=str((base / Path(policy.weights).expanduser()).resolve()))
        for name, policy in policies.items()
    }
