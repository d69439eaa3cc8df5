"""Registers the algorithm `gepa`. Cheap to import: the library is imported when a search begins."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_algorithms(register: Register) -> None:
    register(
        "gepa",
        "agentlightning_gepa.algorithm:GEPA",
        summary="better prompts: a model reflects on recorded rollouts (arXiv 2507.19457)",
        extra="gepa",
        needs=("gepa",),
    )
