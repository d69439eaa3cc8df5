"""The open runs of a framework, and their spans.

A run is recorded once, at its end, however many handlers report it. A run without a kind is plumbing: it is not recorded, and its children
hang from the nearest recorded ancestor. Adapters extend `Run` and `Runs` with the data of their framework.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, Self, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

from agentlightning.capture.model_call import ModelCall
from agentlightning.capture.recorder import Recorder
from agentlightning.types import JSON, Span, SpanKind


@dataclass(slots=True, eq=False, weakref_slot=True, kw_only=True)
class Run:
    """One run of the framework between its start and its end."""

    id: Hashable
    """The framework's own."""
    name: str
    kind: SpanKind | None
    """None: plumbing, not recorded."""
    parent: Self | None
    recorder: ref[Recorder]
    """Weak: a run that never ends must not keep its rollout in memory."""
    agent: str | None = None
    """The agent that acts."""
    started: float = field(default_factory=time.time)
    attributes: dict[str, JSON] = field(default_factory=dict[str, JSON])
    call: ModelCall | None = None
    """Of a run that calls a model."""

    @property
    def span_id(self) -> str:
        """The id of its span."""
        return str(self.id)

    def above(self) -> Iterator[Self]:
        """The ancestors, nearest first."""
        run = self.parent
        while run is not None:
            yield run
            run = run.parent

    def recorded(self) -> Self | None:
        """The nearest run with a span: this one, or an ancestor."""
        return self if self.kind is not None else next((run for run in self.above() if run.kind is not None), None)


R = TypeVar("R", bound=Run)


class Runs(Generic[R]):
    """Every open run of this process. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._attempts: WeakKeyDictionary[Recorder, dict[Hashable, R]] = WeakKeyDictionary()
        self._by_id: WeakValueDictionary[Hashable, R] = WeakValueDictionary()

    def get(self, run_id: Hashable | None) -> R | None:
        """The open run with this id."""
        with self._lock:
            return self._by_id.get(run_id) if run_id is not None else None

    def start(self, recorder: Recorder, run: R) -> bool:
        """Open a run. False: another handler has opened it."""
        with self._lock:
            if run.id in self._by_id:
                return False
            self._attempts.setdefault(recorder, {})[run.id] = run
            self._by_id[run.id] = run
        return True

    def end(self, run_id: Hashable) -> tuple[R, Recorder] | None:
        """Close a run. None: it is not open, because another handler closed it or it ran outside a rollout."""
        with self._lock:
            run = self._by_id.pop(run_id, None)
            recorder = run.recorder() if run is not None else None
            if run is None or recorder is None:
                return None
            self._attempts[recorder].pop(run_id, None)
        return run, recorder


def span(run: Run, recorder: Recorder, *, call_id: str | None = None) -> Span:
    """The span of an ended run with a kind."""
    above = run.parent.recorded() if run.parent is not None else None
    assert run.kind is not None
    return Span(
        id=run.span_id, attempt_id=recorder.attempt.id, kind=run.kind, name=run.name,
        parent_id=above.span_id if above is not None else None, call_id=call_id, agent=run.agent,
        started=run.started, ended=time.time(), attributes=run.attributes,
    )  # fmt: skip
