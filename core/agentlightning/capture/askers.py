"""The agents that asked for tool calls. A tool belongs to the agent that asked for it, wherever the framework runs the tool."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from weakref import WeakKeyDictionary

from agentlightning.capture.recorder import Recorder


class Askers:
    """Agents by the ids of the tool calls in their answers. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._agents: WeakKeyDictionary[Recorder, dict[str, str]] = WeakKeyDictionary()

    def remember(self, recorder: Recorder, tool_call_ids: Iterable[str], agent: str) -> None:
        """Remember the agent that asks for these tool calls."""
        with self._lock:
            self._agents.setdefault(recorder, {}).update(dict.fromkeys(tool_call_ids, agent))

    def find(self, recorder: Recorder, tool_call_id: str | None) -> str | None:
        """Return the agent that asked for this tool call, or None if no answer had its id."""
        with self._lock:
            return self._agents.get(recorder, {}).get(tool_call_id or "")
