"""Registers the engine `upstream`."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_engines(register: Register) -> None:
    register("upstream", "agentlightning_upstream.engine:Upstream", summary="any server that speaks OpenAI's protocol; not trained")
