"""Registers the engine `upstream`."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_engines(register: Register) -> None:
    register(
        "upstream",
        "agentlightning_upstream.engine:Upstream",
        settings="agentlightning_upstream.engine:UpstreamSettings",
        summary="forwards to any OpenAI-compatible server; its model is not trained",
    )
