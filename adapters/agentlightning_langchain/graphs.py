"""The graph behind a run, and whether it is one agent or a workflow of several.

A graph is one agent if LangChain or LangGraph built it (`create_agent`, `create_react_agent`), or if only one of its nodes is the user's
own: `ToolNode` and the like do not count. Any other graph is a workflow: each of its nodes is an agent.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langgraph.constants import START
from langgraph.pregel import Pregel  # pyright: ignore[reportMissingTypeStubs]

from agentlightning.capture.to_json import mapping

NAMELESS = "agent"
"""An agent without a name, outside any node or tool. `create_react_agent` gives its model node this name."""
FRAMEWORK = ("langchain", "langgraph")
"""Packages that build agents."""
_PREGEL = cast("Any", Pregel)
MANAGERS = {inspect.unwrap(manager.on_chain_start).__code__ for manager in (CallbackManager, AsyncCallbackManager)}
STREAMS = {inspect.unwrap(stream).__code__ for stream in (_PREGEL.stream, _PREGEL.astream)}


class Graph:
    """What a run needs of its graph."""

    def __init__(self, pregel: Any) -> None:
        agent = mapping(mapping(pregel.config).get("metadata")).get("lc_agent_name")
        declared = agent if isinstance(agent, str) and agent else None
        self.name: str | None = declared or (pregel.name if pregel.name != _PREGEL.name else None)
        """Its own name: not LangGraph's default, and not the `run_name` of one call."""
        self.nodes = cast("Mapping[str, Any]", pregel.nodes)
        functions = {name: _function(node.bound) for name, node in self.nodes.items() if name != START}
        own = [name for name, function in functions.items() if _package(function) not in FRAMEWORK]
        # A factory like `create_agent` defines its nodes inside itself. `ToolNode` is framework code too, and anybody may use it.
        built = any(
            _package(function) in FRAMEWORK and "<locals>" in getattr(function, "__qualname__", "") for function in functions.values()
        )
        self.is_agent = built or len(own) <= 1
        self.only_node = own[0] if own and not built else None


def starting_graph() -> Graph | None:
    """Return the graph whose start is being reported, or None if another kind of chain starts.

    LangGraph tells handlers the name of a run and not its graph, so this looks at the frame that reports the start. Handlers run inline.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code not in MANAGERS:
        frame = frame.f_back
    reporter = frame.f_back if frame is not None else None
    return Graph(reporter.f_locals["self"]) if reporter is not None and reporter.f_code in STREAMS else None


def _function(body: Any) -> Any:
    """Return the function of a node, or None for another kind of node."""
    return getattr(body, "func", None) or getattr(body, "afunc", None)


def _package(function: Any) -> str:
    return str(getattr(function, "__module__", "")).partition(".")[0]
