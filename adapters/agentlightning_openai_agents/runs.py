"""The SDK's spans that are open now, and which of them become spans of the attempt.

A span is recorded once, at its end, under the SDK's own id, however many processors reported it. Agents, model calls, tools, guardrails
and handoffs become spans. Tasks and turns are plumbing: a turn says who acts, and what is below it hangs from the nearest recorded
ancestor.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

from agentlightning.model import JSON, Span, SpanKind
from agentlightning.recording import Recorder
from agentlightning.routing import ModelCall


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call in a reply."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True, eq=False, weakref_slot=True, kw_only=True)
class Run:
    """One span of the SDK that has started and not ended."""

    id: str
    name: str
    kind: SpanKind | None
    """None: plumbing, which is not recorded."""
    parent: Run | None
    recorder: ref[Recorder]
    """Weak: a run that never ends must not keep its rollout in memory."""
    agent: str | None
    """Who acts here."""
    turn: int | None = None
    """The SDK's number of the turn that begins here, from 1."""
    started: float = field(default_factory=time.time)
    attributes: dict[str, JSON] = field(default_factory=dict[str, JSON])
    call: ModelCall | None = None
    """What a model call sends."""
    asked: list[ToolCall] = field(default_factory=list[ToolCall])
    """In a turn (in an agent, where turns are not traced): tool calls of its replies that no tool span took yet."""

    def above(self) -> Iterator[Run]:
        """The ancestors, nearest first."""
        run = self.parent
        while run is not None:
            yield run
            run = run.parent

    def recorded(self) -> Run | None:
        """This run or its nearest ancestor that becomes a span."""
        return self if self.kind is not None else next((run for run in self.above() if run.kind is not None), None)

    def scope(self) -> Run | None:
        """The turn, or else the agent, that this run belongs to."""
        return next((run for run in self.above() if run.turn is not None or run.kind == "agent"), None)


class Runs:
    """Every open run of this process. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._attempts: WeakKeyDictionary[Recorder, dict[str, Run]] = WeakKeyDictionary()
        self._by_id: WeakValueDictionary[str, Run] = WeakValueDictionary()

    def get(self, run_id: str | None) -> Run | None:
        with self._lock:
            return self._by_id.get(run_id) if run_id is not None else None

    def start(self, recorder: Recorder, run: Run) -> bool:
        """Open a run; False when another processor has reported it already."""
        with self._lock:
            if run.id in self._by_id:
                return False
            self._attempts.setdefault(recorder, {})[run.id] = run
            self._by_id[run.id] = run
        return True

    def end(self, run_id: str) -> tuple[Run, Recorder] | None:
        """Close a run; None when it is not open: another processor has ended it, or it ran outside a rollout."""
        with self._lock:
            run = self._by_id.pop(run_id, None)
            recorder = run.recorder() if run is not None else None
            if run is None or recorder is None:
                return None
            self._attempts[recorder].pop(run_id, None)
        return run, recorder

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
            fitting = [each for each in scope.asked if each.name == run.name or run.name.endswith(f".{each.name}")]
            if arguments is not None:
                fitting = [each for each in fitting if each.arguments == arguments]
            if not fitting or len({each.arguments for each in fitting}) > 1:
                return None
            scope.asked.remove(fitting[0])
        return fitting[0].id


def made(run: Run, recorder: Recorder, *, call_id: str | None = None) -> Span:
    """An ended run as a span."""
    above = run.parent.recorded() if run.parent is not None else None
    assert run.kind is not None
    return Span(
        id=run.id, attempt_id=recorder.attempt.id, kind=run.kind, name=run.name, parent_id=above.id if above is not None else None,
        call_id=call_id, agent=run.agent, started=run.started, ended=time.time(), attributes=run.attributes,
    )  # fmt: skip
