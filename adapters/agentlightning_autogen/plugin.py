"""Registers the AutoGen adapter. Cheap to import: the adapter itself is imported on first use."""

from __future__ import annotations

from agentlightning.contracts.hookspecs import Register, hookimpl

NEEDS = ("autogen_core", "autogen_agentchat", "openai")


@hookimpl
def register_adapters(register: Register) -> None:
    register(
        "autogen",
        "agentlightning_autogen.adapter:install",
        summary="records AutoGen teams, agents, and tools, and links each model call to its tokens",
        extra="autogen",
        needs=NEEDS,
    )


@hookimpl
def register_checks(register: Register) -> None:
    register("autogen", "agentlightning_autogen.check:check", summary="installs", extra="autogen", needs=NEEDS)
