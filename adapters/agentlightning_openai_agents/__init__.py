"""Agent Lightning for the OpenAI Agents SDK.

    import agentlightning_openai_agents

    agentlightning_openai_agents.install()                              # records every run in this process

or, if you configure tracing yourself,

    from agentlightning_openai_agents import LightningTracingProcessor

    agents.set_trace_processors([LightningTracingProcessor()])

The SDK is imported only when you use one of the names below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentlightning.lazy import lazy_exports

if TYPE_CHECKING:
    from agentlightning_openai_agents.adapter import LightningTracingProcessor, current_span_id, install, uninstall

__all__ = ["LightningTracingProcessor", "current_span_id", "install", "uninstall"]

if not TYPE_CHECKING:  # for type checkers, a module with `__getattr__` has every name
    __getattr__, __dir__ = lazy_exports(__name__, {"adapter": __all__}, extra="openai-agents")
