"""Agent Lightning for LangChain and LangGraph.

    from agentlightning_langchain import LightningCallback

    agent.invoke(inputs, config={"callbacks": [LightningCallback()]})   # records this call

or, without changing the agent,

    import agentlightning_langchain

    agentlightning_langchain.install()                                  # records every call in this process

LangChain is imported only when you use one of the names below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentlightning.lazy import lazy_exports

if TYPE_CHECKING:
    from agentlightning_langchain.adapter import LightningCallback, current_span_id, install, uninstall

__all__ = ["LightningCallback", "current_span_id", "install", "uninstall"]

if not TYPE_CHECKING:  # for type checkers, a module with `__getattr__` has every name
    __getattr__, __dir__ = lazy_exports(__name__, {"adapter": __all__}, extra="langchain")
