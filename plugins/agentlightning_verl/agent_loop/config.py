"""The agent's config file."""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from agentlightning.config.parts import naming
from agentlightning.config.schema import RunnerSettings
from agentlightning.errors import ConfigError, UnsupportedSetting
from agentlightning.settings import build


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """The file named by `agent_loop_config_path`."""

    agent: str
    """`module:function`, called with `(task, llm)`. The task is a row of verl's data."""
    adapters: tuple[str, ...] = ()
    """Framework adapters to install."""
    models: tuple[str, ...] = ()
    """Model names in the agent's code. These calls go to the model being trained."""
    agents: tuple[str, ...] | None = None
    """Names or patterns of the agents to train. Default: all."""
    reward_weights: dict[str, float] = field(default_factory=dict[str, float])
    runner: RunnerSettings = field(default_factory=RunnerSettings)
    store: str = "sqlite:agl.db"
    """Address of the store for rollouts, tokens, and rewards."""
    path: str | None = None
    """Folder of the agent's module. Default: the folder of this file."""

    def __post_init__(self) -> None:
        for name in ("name", "workers", "remote"):
            value, usual = getattr(self.runner, name), getattr(RunnerSettings(), name)
            if value != usual:
                raise UnsupportedSetting(f"runner.{name} is {value!r}, but under verl the agents run in its own process. Remove it.")


def read_config(path: str | None) -> AgentConfig:
    """Read the agent's settings. A `ConfigError` names the file and the key."""
    if not path:
        raise ConfigError(
            'actor_rollout_ref.rollout.agent.agent_loop_config_path is empty. Name a file with agent = "module:function"; '
            "agentlightning_verl.agent_loop.AgentConfig has the other keys."
        )
    file = Path(path)
    with naming(file):
        try:
            table = tomllib.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"The agent's configuration cannot be read: {error}. Expected a TOML file.") from error
        config = build(AgentConfig, table)
    folder = str((file.resolve().parent / (config.path or "")).resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return config
