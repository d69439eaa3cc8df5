"""What the LangChain adapter registers. Light: the adapter itself is imported when somebody asks for it."""

from __future__ import annotations

from agentlightning.hookspecs import Register, hookimpl


@hookimpl
def register_adapters(register: Register) -> None:
    register(
        "langchain",
        "agentlightning_langchain.adapter:install",
        summary="LangChain and LangGraph: agents, nodes and tools as spans, each model call joined to its tokens",
        extra="langchain",
        needs=("langchain_core", "langchain_openai", "langgraph"),
    )
