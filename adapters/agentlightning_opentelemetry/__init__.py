"""Agent Lightning for every framework that emits OpenTelemetry spans.

    import agentlightning_opentelemetry

    agentlightning_opentelemetry.install()        # records the spans of this process during rollouts

Spans with the GenAI or OpenInference conventions become agents, tools, and model calls. A preset such as `adapters = ["pydantic-ai"]` also
switches the framework's instrumentation on.

OpenTelemetry is imported only when you use one of the names below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentlightning.lazy import lazy_exports

if TYPE_CHECKING:
    from agentlightning_opentelemetry.adapter import current_span_id, install, uninstall
    from agentlightning_opentelemetry.processor import LightningSpanProcessor

__all__ = ["LightningSpanProcessor", "current_span_id", "install", "uninstall"]

if not TYPE_CHECKING:  # for type checkers, a module with `__getattr__` has every name
    homes = {"adapter": ["current_span_id", "install", "uninstall"], "processor": ["LightningSpanProcessor"]}
    __getattr__, __dir__ = lazy_exports(__name__, homes, extra="opentelemetry")
