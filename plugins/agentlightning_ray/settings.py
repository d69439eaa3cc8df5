"""The settings of Ray runners, light to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from agentlightning.config.schema import RunnerSettings
from agentlightning.errors import ConfigError
from agentlightning.settings import NonNegativeFloat
from agentlightning.types import JSON

AtLeastOne = Annotated[int, Meta(ge=1)]


@dataclass(frozen=True, kw_only=True)
class RaySettings(RunnerSettings):
    """Actors of a Ray cluster run the agent. A node that dies loses its actors; Ray starts them on another one."""

    name: str = "ray"
    """`ray`"""
    workers: AtLeastOne = 2
    """Actors. Each has up to `concurrency` rollouts in flight."""
    remote: bool = False
    """Not with this runner: Ray starts the actors."""
    cluster: str | None = None
    """Address of the cluster, as in `auto` or `10.0.0.5:6379`. Absent: `RAY_ADDRESS`, else a cluster on this machine alone."""
    cpus: NonNegativeFloat = 1.0
    """CPUs for each actor."""
    gpus: NonNegativeFloat = 0.0
    """GPUs for each actor."""
    resources: dict[str, NonNegativeFloat] = field(default_factory=dict[str, float])
    """Custom resources for each actor, such as `browser = 1`."""
    runtime_env: dict[str, JSON] = field(default_factory=dict[str, JSON])
    """Ray's runtime environment. `working_dir` ships your agent's code, and `pip` installs its libraries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remote:
            raise ConfigError('runner.remote and runner.name = "ray" are both set. Remove one of them.')
