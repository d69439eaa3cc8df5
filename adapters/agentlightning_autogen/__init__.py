"""Agent Lightning for AutoGen (autogen-agentchat and autogen-core).

    import agentlightning_autogen

    agentlightning_autogen.install()                       # every call in this process is recorded, with no change in the program

or, for one model client among several,

    from agentlightning_autogen import LightningChatCompletionClient

    client = LightningChatCompletionClient(OpenAIChatCompletionClient(model="gpt-4o"))

Nothing is imported from AutoGen before one of the names below is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentlightning.errors import MissingExtra

if TYPE_CHECKING:
    from agentlightning_autogen.adapter import LightningChatCompletionClient, current_span_id, install, uninstall

__all__ = ["LightningChatCompletionClient", "current_span_id", "install", "uninstall"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from agentlightning_autogen import adapter
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "agentlightning_autogen":
            raise
        missing = (error.name or "AutoGen").partition(".")[0]
        raise MissingExtra(
            f"agentlightning_autogen.{name} needs {missing}, which is not installed; run: pip install 'agentlightning[autogen]'"
        ) from error
    return getattr(adapter, name)


def __dir__() -> list[str]:
    return __all__
