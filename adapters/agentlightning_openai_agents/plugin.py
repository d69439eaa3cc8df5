"""Registers the OpenAI Agents SDK adapter. Cheap to import: the adapter itself is imported on first use."""

from __future__ import annotations

from agentlightning.contracts.hookspecs import Register, hookimpl

NEEDS = ("agents", "openai")


@hookimpl
def register_adapters(register: Register) -> None:
    register(
        "openai-agents",
        "agentlightning_openai_agents.adapter:install",
        summary="records OpenAI Agents SDK agents, handoffs, tools, and guardrails, and links each model call to its tokens",
        extra="openai-agents",
        needs=NEEDS,
    )


@hookimpl
def register_checks(register: Register) -> None:
    register("openai-agents", "agentlightning_openai_agents.check:check", summary="installs", extra="openai-agents", needs=NEEDS)
