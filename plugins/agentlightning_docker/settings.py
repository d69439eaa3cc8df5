"""The settings of rollouts in containers, light to import."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from agentlightning.config.schema import RunnerSettings
from agentlightning.errors import ConfigError
from agentlightning.settings import NonNegativeInt, PositiveFloat, PositiveInt

OWN = frozenset({
    "--cap-add", "--cap-drop", "--cgroup-parent", "--cpus", "--detach", "-d", "--entrypoint", "--init", "--ipc", "--link", "--log-driver",
    "--memory", "-m", "--memory-swap", "--name", "--net", "--network", "--pid", "--pids-limit", "--privileged", "--publish", "-p",
    "--publish-all", "-P", "--pull", "--rm", "--security-opt", "--userns", "--uts",
})  # fmt: skip
"""Options of `docker run` that this runner sets itself, or that would open the container."""
RELATIVE = re.compile(r"(--\w+=)?\.{1,2}(/|:)")


@dataclass(frozen=True, kw_only=True)
class DockerSettings(RunnerSettings):
    """Each rollout runs in a container of its own, which reaches nothing but the gateway. The image holds the agent and Python 3.8 or
    newer, as `python3`. An `agent` function also needs `agentlightning` in it; a `command` does not."""

    imports_agent: ClassVar[bool] = False
    name: str = "docker"
    """`docker`"""
    workers: NonNegativeInt = 0
    """Not with this runner: each rollout has a container of its own."""
    remote: bool = False
    """Not with this runner: the containers start on the run's machine."""
    image: Annotated[str, Meta(min_length=1)]
    """The image, which must be on this machine."""
    engine: Literal["docker", "podman"] | None = None
    """The program that starts containers. Absent: the first of docker and podman that works here."""
    cpus: PositiveFloat = 1.0
    """CPUs for each container, at most."""
    memory: Annotated[str, Meta(pattern=r"^[1-9][0-9]*[mg]$", description="text like '512m' or '2g'")] = "2g"
    """Memory for each container, at most. The kernel ends a process that wants more."""
    processes: PositiveInt = 256
    """Processes and threads in each container, at most."""
    options: tuple[str, ...] = ()
    """Further options of `docker run`, such as `["--volume", "/data:/data:ro"]`. A mounted folder is open to the agent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remote:
            raise ConfigError('runner.remote and runner.name = "docker" are both set. Remove one of them.')
        if self.workers:
            raise ConfigError(f"runner.workers is {self.workers}, but each rollout has a container of its own. Remove it.")
        for option in self.options:
            if option.partition("=")[0] in OWN:
                raise ConfigError(
                    f"runner.options has {option!r}, which this runner sets itself, so that containers stay closed. Remove it."
                )

            if RELATIVE.match(option):
                raise ConfigError(f"runner.options has {option!r}, a relative path. Write it in full, because containers start elsewhere.")

    def check_machine(self) -> None:
        """Start a container as a rollout would. Raises `ConfigError` if none runs here."""
        from agentlightning_docker.check import check_machine

        check_machine(self)
