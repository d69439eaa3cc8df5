"""Agent Lightning for LangChain and LangGraph.

    from agentlightning_langchain import LightningCallback

    agent.invoke(inputs, config={"callbacks": [LightningCallback()]})   # this call is recorded

or, with no change in the agent at all,

    import agentlightning_langchain

    agentlightning_langchain.install()                                  # every call in this process is recorded

Nothing is imported from LangChain before one of the names below is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentlightning.lazy import lazy_exports

if TYPE_CHECKING:
    from agentlightning_langchain.adapter import LightningCallback, current_span_id, install, uninstall

__all__ = ["LightningCallback", "current_span_id", "install", "uninstall"]

if not TYPE_CHECKING:  # for type checkers, a module with `__getattr__` has every name
    __getattr__, __dir__ = lazy_exports(__name__, {"adapter": __all__}, extra="langchain")
