"""Agent Lightning for AutoGen (autogen-agentchat and autogen-core).

    import agentlightning_autogen

    agentlightning_autogen.install()                       # records every call in this process, without code changes

or, for a single model client,

    from agentlightning_autogen import LightningChatCompletionClient

    client = LightningChatCompletionClient(OpenAIChatCompletionClient(model="gpt-4o"))

AutoGen is imported only when you use one of the names below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentlightning.lazy import lazy_exports

if TYPE_CHECKING:
    from agentlightning_autogen.adapter import LightningChatCompletionClient, current_span_id, install, uninstall

__all__ = ["LightningChatCompletionClient", "current_span_id", "install", "uninstall"]

if not TYPE_CHECKING:  # for type checkers, a module with `__getattr__` has every name
    __getattr__, __dir__ = lazy_exports(__name__, {"adapter": __all__}, extra="autogen")
