"""Agent Lightning for the OpenAI Agents SDK.

    import agentlightning_openai_agents

    agentlightning_openai_agents.install()                              # every run in this process is recorded

or, for those who wire their tracing themselves,

    from agentlightning_openai_agents import LightningTracingProcessor

    agents.set_trace_processors([LightningTracingProcessor()])

Nothing is imported from the SDK before one of the names below is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentlightning.lazy import lazy_exports

if TYPE_CHECKING:
    from agentlightning_openai_agents.adapter import LightningTracingProcessor, current_span_id, install, uninstall

__all__ = ["LightningTracingProcessor", "current_span_id", "install", "uninstall"]

if not TYPE_CHECKING:  # for type checkers, a module with `__getattr__` has every name
    __getattr__, __dir__ = lazy_exports(__name__, {"adapter": __all__}, extra="openai-agents")
