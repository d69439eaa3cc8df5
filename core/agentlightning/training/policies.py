"""Several policies in one run: the parts that they need, the weights of the frozen ones, and the checks of their first calls."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

from agentlightning.capture.recorder import AGENT_HEADER
from agentlightning.config.policies import PolicyConfig
from agentlightning.contracts.engine import Engine
from agentlightning.contracts.model import ModelFiles
from agentlightning.contracts.policies import PolicyChoice
from agentlightning.contracts.trainer import Trainer
from agentlightning.errors import ConfigError, JoinError, UnsupportedSetting
from agentlightning.types import Policy, PolicyKind, Trajectory

Policies: TypeAlias = Mapping[str, PolicyConfig]
"""The table `[policies]`. Empty: the run has one policy."""
log = logging.getLogger("agentlightning")


def check_policy_parts(
    policies: Policies,
    engine_name: str,
    engine: type[Engine],
    trainer_name: str = "",
    trainers: Mapping[str, tuple[type[Trainer], object]] | None = None,
) -> None:
    """Raise `ConfigError` if the engine or the trainer cannot have these policies, or weights are missing."""
    if not policies:
        return
    if not engine.several:
        raise UnsupportedSetting(
            f"Engine {engine_name!r} serves one policy, and policies names {len(policies)}. Use engine 'torch' or 'vllm'."
        )
    for name, (trainer, settings) in (trainers or {}).items():
        kind = trainer.offers(settings).several
        if kind is None:
            raise UnsupportedSetting(
                f"policies.{name} needs weights of its own beside those of others, and trainer {trainer_name!r} trains one policy. Use "
                "trainer 'torch'."
            )
        if kind not in engine.several:
            raise UnsupportedSetting(
                f"policies.{name} would train layers of its own, and engine {engine_name!r} serves several policies only as LoRA adapters. "
                "Set trainer.train = 'lora', or use engine 'torch'."
            )
    for name, policy in policies.items():
        if policy.weights is None:
            continue
        if not any((Path(policy.weights) / file).is_file() for file in ("adapter_config.json", "config.json")):
            raise ConfigError(
                f"policies.{name}.weights is {policy.weights!r}, which has neither adapter_config.json nor config.json. Name the folder of "
                "a LoRA adapter or of a model."
            )
        if kind_of_weights(policy.weights) not in engine.several:
            raise UnsupportedSetting(
                f"policies.{name}.weights is the full model {policy.weights!r}, and engine {engine_name!r} serves several policies only as "
                "LoRA adapters. Name the folder of an adapter, or use engine 'torch'."
            )


def kind_of_weights(folder: str) -> PolicyKind:
    """Return what a folder holds: a LoRA adapter, or a full model."""
    return "lora" if (Path(folder) / "adapter_config.json").is_file() else "full"


def frozen_policies(policies: Policies, files: ModelFiles) -> list[Policy]:
    """Return the frozen policies of a run, in version 0."""
    return [frozen_policy(name, files, policy.weights) for name, policy in policies.items() if not policy.train]


def frozen_policy(name: str, files: ModelFiles, weights: str | None = None, version: int = 0) -> Policy:
    """Return a policy that is a model as it is, or has the weights of a folder."""
    folder = files.path if weights is None else weights
    return Policy(name=name, version=version, base=files.name, kind=kind_of_weights(folder), uri=f"file:{quote(folder)}")


def check_first_calls(trajectories: Sequence[Trajectory], choice: PolicyChoice, trained: Sequence[str], *, full_step: bool = False) -> None:
    """Check which policy answered the calls of the first rollouts, now that adapters have told the agents.

    Raises `JoinError` if an agent of one policy was answered by another, because its request did not tell the agent. Raises `ConfigError`
    if no call of a full step went to any trained policy.
    """
    calls = Counter((t.agent, t.policy) for trajectory in trajectories for t in trajectory.transitions)
    for (agent, policy), count in calls.items():
        own = choice.of_agent(agent)
        if own not in (None, policy):
            raise JoinError(
                f"Agent {agent!r} belongs to policy {own!r}, but policy {policy!r} answered {count} of its calls, because the requests did "
                f"not tell the agent. Let the agent ask for model {own!r}, or send its name in the header {AGENT_HEADER}."
            )
    idle = [name for name in trained if not any(policy == name for _, policy in calls)]
    if not calls or not full_step or not idle:
        return
    agents = sorted({repr(agent) for agent, _ in calls if agent is not None}) or ["no agent"]
    text = (
        f"No call of the first step went to policy {idle[0]!r}. The requests name {', '.join(agents)}. List its agents in "
        f"[policies.{idle[0]}], or let them ask for model {idle[0]!r}."
    )
    if len(idle) == len(trained):
        raise ConfigError(text)
    log.warning("%s", text)
