"""The SDK's spans that are open now, and which of them become spans of the attempt.

Agents, model calls, tools, guardrails and handoffs become spans. Tasks and turns are plumbing: a turn says who acts.
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
    """One span of the SDK that has started and not ended; it is recorded under the SDK's own id."""

    turn: int | None = None
    """The SDK's number of the turn that begins here, from 1."""
    asked: list[ToolCall] = field(default_factory=list[ToolCall])
    """In a turn (in an agent, where turns are not traced): tool calls of its replies that no tool span took yet."""

    def scope(self) -> Run | None:
        """The turn, or else the agent, that this run belongs to."""
        return next((run for run in self.above() if run.turn is not None or run.kind == "agent"), None)


class Runs(open_runs.Runs[Run]):
    """Every open run of this process, and the tool calls that it is asked for. Safe from any thread."""

    def answered(self, run: Run, asked: list[ToolCall]) -> None:
        """Keep the tool calls of a reply for the tool spans to come."""
        scope = run.scope()
        if scope is not None:
            with self._lock:
                scope.asked.extend(asked)

    def asked_by(self, run: Run, arguments: str | None) -> str | None:
        """The id of the tool call that a tool run answers: the one of its name and arguments, in its turn. Of two that are equal in both,
        the earlier, for they are of one reply. None where it is in doubt."""
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
