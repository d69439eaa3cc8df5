"""The SDK's open spans, and the rules by which they become spans of the attempt.

Agents, model calls, tools, guardrails, and handoffs become spans. Tasks and turns are plumbing. A turn tells the acting agent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agentlightning.capture import open_runs


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call in a reply."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True, eq=False, kw_only=True)
class Run(open_runs.Run):
    """An open span of the SDK. It is recorded under the SDK's own id."""

    turn: int | None = None
    """The SDK's number of the turn that starts here, from 1."""
    asked: list[ToolCall] = field(default_factory=list[ToolCall])
    """For a turn (or an agent, if turns are not traced): tool calls of its replies without a tool span so far."""

    def scope(self) -> Run | None:
        """Return the turn, or else the agent, that contains this run."""
        return next((run for run in self.above() if run.turn is not None or run.kind == "agent"), None)


class Runs(open_runs.Runs[Run]):
    """Every open run of this process and its pending tool calls. Thread-safe."""

    def answered(self, run: Run, asked: list[ToolCall]) -> None:
        """Keep the tool calls of a reply for the following tool spans."""
        scope = run.scope()
        if scope is not None:
            with self._lock:
                scope.asked.extend(asked)

    def asked_by(self, run: Run, arguments: str | None) -> str | None:
        """Return the id of the tool call that a tool run answers, matched by name and arguments within its turn.

        Equal calls belong to one reply, so the earlier one matches. Returns None in doubt.
        """
        scope = run.scope()
        if scope is None:
            return None
        with self._lock:
            # A tool of a namespace is traced as `namespace.name`.
            fitting = [call for call in scope.asked if call.name == run.name or run.name.endswith(f".{call.name}")]
            if arguments is not None:
                fitting = [call for call in fitting if call.arguments == arguments]
            if not fitting or len({call.arguments for call in fitting}) > 1:
                return None
            scope.asked.remove(fitting[0])
        return fitting[0].id
