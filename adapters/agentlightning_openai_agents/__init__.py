"""Agent Lightning for the OpenAI Agents SDK.

    import agentlightning_openai_agents

    agentlightning_openai_agents.install()                              # every run in this process is recorded

or, for those who wire their tracing themselves,

    from agentlightning_openai_agents import LightningTracingProcessor

    agents.set_trace_processors([LightningTracingProcessor()])

Nothing is imported from the SDK before one of the names below is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentlightning.errors import MissingExtra

if TYPE_CHECKING:
    from agentlightning_openai_agents.adapter import LightningTracingProcessor, current_span_id, install, uninstall

__all__ = ["LightningTracingProcessor", "current_span_id", "install", "uninstall"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from agentlightning_openai_agents import adapter
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "agentlightning_openai_agents":
            raise
        missing = (error.name or "the OpenAI Agents SDK").partition(".")[0]
        raise MissingExtra(
            f"agentlightning_openai_agents.{name} needs {missing}, which is not installed; run: pip install 'agentlightning[openai-agents]'"
        ) from error
    return getattr(adapter, name)


def __dir__() -> list[str]:
    return __all__
