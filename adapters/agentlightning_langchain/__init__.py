"""Agent Lightning for LangChain and LangGraph.

    from agentlightning_langchain import LightningCallback

    agent.invoke(inputs, config={"callbacks": [LightningCallback()]})   # this call is recorded

or, with no change in the agent at all,

    import agentlightning_langchain

    agentlightning_langchain.install()                                  # every call in this process is recorded

Nothing is imported from LangChain before one of the names below is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentlightning.errors import MissingExtra

if TYPE_CHECKING:
    from agentlightning_langchain.adapter import LightningCallback, current_span_id, install, uninstall

__all__ = ["LightningCallback", "current_span_id", "install", "uninstall"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from agentlightning_langchain import adapter
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "agentlightning_langchain":
            raise
        missing = (error.name or "LangChain").partition(".")[0]
        raise MissingExtra(
            f"agentlightning_langchain.{name} needs {missing}, which is not installed; run: pip install 'agentlightning[langchain]'"
        ) from error
    return getattr(adapter, name)


def __dir__() -> list[str]:
    return __all__
