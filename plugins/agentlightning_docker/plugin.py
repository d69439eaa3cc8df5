"""Registers the runner that starts a container for each rollout."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_runners(register: Register) -> None:
    register(
        "docker",
        "agentlightning_docker.runners:run",
        settings="agentlightning_docker.settings:DockerSettings",
        summary="a container for each rollout, by docker or podman, without a network",
    )
