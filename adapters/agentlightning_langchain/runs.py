"""The framework's open runs, and the rules by which they become spans.

Agents, graphs, nodes, tools, and model calls become spans. Sequences, prompts, and parsers are plumbing.

An agent that is one graph has the graph's own name, else the name of the node or tool around the graph. A node of a workflow is an agent
with the node's name. Inside another graph or a tool, the workflow's name stands before it: `team/draft`. A tool belongs to the agent that
asked for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID, uuid5
from weakref import ref

from langgraph.constants import TAG_HIDDEN

from agentlightning.capture import open_runs
from agentlightning.capture.recorder import Recorder
from agentlightning.types import JSON, SpanKind
from agentlightning_langchain.graphs import NAMELESS, Graph


@dataclass(slots=True, eq=False, kw_only=True)
class Run(open_runs.Run):
    """An open run of the framework. Its id is a UUID."""

    graph: Graph | None = None
    """The graph, if this run is one."""
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
        return next((run.node or run.name for run in self.above() if run.kind == "tool" or run.node is not None), None)


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


def chain_run(
    run_id: UUID, parent: Run | None, name: str, graph: Graph | None, tags: Iterable[str], metadata: Mapping[str, Any], recorder: Recorder
) -> Run:
    """Return a chain as a run: a graph, a graph's node, or plumbing."""
    node, namespace = _text(metadata, "langgraph_node"), _text(metadata, "langgraph_checkpoint_ns")
    run = Run(
        id=run_id, name=name, kind=None, parent=parent, recorder=ref(recorder), namespace=namespace, attributes=_where(metadata),
        agent=parent.agent if parent is not None else _text(metadata, "lc_agent_name") or node,
    )  # fmt: skip
    if graph is not None:
        run.kind, run.graph, run.name = "agent", graph, graph.name or name
        run.agent = graph.name or run.enclosing() or (graph.only_node or NAMELESS if graph.is_agent else None)
    elif node is not None and node == name and (parent is None or parent.namespace != namespace) and TAG_HIDDEN not in tags:
        run.kind, run.node = "agent", node
        run.agent = _actor(run, node) or run.agent
    return run


def leaf_run(run_id: UUID, kind: SpanKind, parent: Run | None, name: str, metadata: Mapping[str, Any], recorder: Recorder) -> Run:
    """Return a tool or model call as a run."""
    agent = parent.agent if parent is not None else None
    return Run(
        id=run_id, name=name, kind=kind, parent=parent, recorder=ref(recorder),
        agent=agent or _text(metadata, "lc_agent_name") or _text(metadata, "langgraph_node"),
        namespace=_text(metadata, "langgraph_checkpoint_ns"), attributes=_where(metadata),
    )  # fmt: skip


def _actor(run: Run, node: str) -> str | None:
    """Return the agent that acts in a node, or None if the handler did not see its graph start."""
    above = next((above for above in run.above() if above.graph is not None), None)
    if above is None or above.graph is None:
        return None
    if above.graph.is_agent and node in above.graph.nodes:
        return above.agent
    # A node of a workflow, or a task of the functional API.
    return f"{above.agent}/{node}" if above.enclosing() is not None else node


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
