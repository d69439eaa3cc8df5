"""Registers the LangChain adapter. Cheap to import: the adapter itself is imported on first use."""

from __future__ import annotations

from agentlightning.contracts.hookspecs import Register, hookimpl

NEEDS = ("langchain_core", "langchain_openai", "langgraph")


@hookimpl
def register_adapters(register: Register) -> None:
    register(
        "langchain",
        "agentlightning_langchain.adapter:install",
        summary="records LangChain and LangGraph agents, nodes, and tools, and links each model call to its tokens",
        extra="langchain",
        needs=NEEDS,
    )


@hookimpl
def register_checks(register: Register) -> None:
    register("langchain", "agentlightning_langchain.check:check", summary="installs", extra="langchain", needs=NEEDS)
