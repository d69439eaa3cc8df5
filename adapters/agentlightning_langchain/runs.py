"""The framework's open runs, and the rules by which they become spans.

Agents, graphs, nodes, tools, and model calls become spans. Sequences, prompts, and parsers are plumbing.

The acting agent is the nearest `create_agent(name=...)`, else the nearest LangGraph node. An unnamed `create_agent` inside a node or tool
takes the name of that node or tool, because its own nodes are always called `model` and `tools`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID, uuid5
from weakref import ref

from agentlightning.capture import open_runs
from agentlightning.capture.recorder import Recorder
from agentlightning.types import JSON, SpanKind

CREATE_AGENT_NODES = ("model", "tools")
"""Names of the nodes that `create_agent` itself creates."""


@dataclass(slots=True, eq=False, kw_only=True)
class Run(open_runs.Run):
    """An open run of the framework. Its id is a UUID."""

    named: str | None = None
    """The `lc_agent_name` that applies here."""
    begins: bool = False
    """Whether a named agent starts here."""
    node: str | None = None
    """The node's name, if this run is a node."""
    namespace: str | None = None
    """LangGraph's checkpoint namespace: the path of nodes to this run."""
    retry: int | None = None
    """The attempt number of `with_retry`, from 2."""
    prompts: int = 1
    """Number of prompts that share the answer's `llm_output`."""

    @property
    def span_id(self) -> str:
        # The bare run id is taken: it identifies the model call.
        return uuid5(cast(UUID, self.id), "span").hex

    def enclosing(self) -> str | None:
        """Return the name of the tool or node that contains this run."""
        return next((run.name for run in self.above() if run.kind == "tool" or run.node is not None), None)


class Runs(open_runs.Runs[Run]):
    """Every open run of this process. Thread-safe."""

    def model_calls_below(self, run_id: UUID) -> list[Run]:
        """Return the open model calls of a run."""
        with self._lock:
            run = self._by_id.get(run_id)
            recorder = run.recorder() if run is not None else None
            if run is None or recorder is None:
                return []
            calls = [run for run in self._attempts[recorder].values() if run.kind == "llm"]
        return [call for call in calls if run in call.above()]


def chain_run(run_id: UUID, parent: Run | None, name: str, metadata: Mapping[str, Any], recorder: Recorder) -> Run:
    """Return a chain as a run: a graph's node, an agent, or plumbing. The first node reveals a graph."""
    named, node = _text(metadata, "lc_agent_name"), _text(metadata, "langgraph_node")
    namespace = _text(metadata, "langgraph_checkpoint_ns")
    run = Run(
        id=run_id, name=name, kind=None, parent=parent, recorder=ref(recorder), named=named, namespace=namespace,
        attributes=_where(metadata),
    )  # fmt: skip
    if node == name and (parent is None or parent.namespace != namespace):
        run.kind, run.node = "agent", node
        run.agent = _actor(run, metadata)
        if parent is not None and parent.kind is None:
            parent.kind = "agent"
    elif named is not None and (name == named or named != (parent.named if parent is not None else None)):
        run.kind, run.begins, run.name, run.agent = "agent", True, named, named
    else:
        run.agent = parent.agent if parent is not None else named or node
    return run


def leaf_run(run_id: UUID, kind: SpanKind, parent: Run | None, name: str, metadata: Mapping[str, Any], recorder: Recorder) -> Run:
    """Return a tool or model call as a run."""
    agent = parent.agent if parent is not None else None
    named = _text(metadata, "lc_agent_name")
    return Run(
        id=run_id, name=name, kind=kind, parent=parent, recorder=ref(recorder), named=named,
        agent=agent or named or _text(metadata, "langgraph_node"), namespace=_text(metadata, "langgraph_checkpoint_ns"),
        attributes=_where(metadata),
    )  # fmt: skip


def _actor(node: Run, metadata: Mapping[str, Any]) -> str | None:
    graph = node.parent
    if graph is None:
        return node.named or node.node
    if graph.begins:
        return graph.agent
    if node.node in CREATE_AGENT_NODES and metadata.get("ls_integration") == "langchain_create_agent":
        return graph.enclosing() or node.node
    return node.node


def _where(metadata: Mapping[str, Any]) -> dict[str, JSON]:
    attributes: dict[str, JSON] = {}
    for name, key in (("lc_agent_name", "lc_agent_name"), ("node", "langgraph_node"), ("step", "langgraph_step")):
        if metadata.get(key) is not None:
            attributes[name] = metadata[key]
    namespace = _text(metadata, "langgraph_checkpoint_ns")
    if namespace is not None and "|" in namespace:
        attributes["path"] = "/".join(part.partition(":")[0] for part in namespace.split("|"))
    return attributes


def _text(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) and value else None
