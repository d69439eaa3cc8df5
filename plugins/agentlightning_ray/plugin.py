"""Registers the Ray runners."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_runners(register: Register) -> None:
    register(
        "ray",
        "agentlightning_ray.runners:run",
        settings="agentlightning_ray.settings:RaySettings",
        summary="actors on a Ray cluster, with resources for each",
        extra="ray",
        needs=("ray",),
    )
