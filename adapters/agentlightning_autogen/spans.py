"""Open teams, agents, tools, and model calls, and the spans they become.

A part is current only while its own code runs. An asynchronous generator borrows its consumer's context for each step, so between steps the
consumer's part is current again.

The adapter never changes the program's behaviour. It logs each recording fault once and leaves a note in the attempt. It raises only the
recorder's own errors, because records rejected by the store must not disappear silently.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol
from weakref import ref

from agentlightning.capture.askers import Askers
from agentlightning.capture.recorder import Recorder
from agentlightning.capture.recorder import current as current_recorder
from agentlightning.capture.to_json import failure
from agentlightning.errors import LightningError
from agentlightning.types import JSON, Span, SpanKind, new_id

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, weakref_slot=True, kw_only=True)
class Open:
    """A running part of the program."""

    kind: SpanKind
    name: str
    owner: object
    """The acting object. Calls to its own methods belong to this part."""
    recorder: ref[Recorder]
    """A weak reference, so that a part that never ends does not keep its rollout in memory."""
    parent: Open | None
    agent: str | None
    """Name of the acting agent."""
    quiet: bool = False
    """Whether the part becomes a span only if something happens inside it."""
    used: bool = False
    """Whether something happened inside."""
    ended: bool = False
    dropped: bool = False
    """Whether it ended without becoming a span."""
    id: str = field(default_factory=new_id)
    started: float = field(default_factory=time.time)
    attributes: dict[str, JSON] = field(default_factory=dict[str, JSON])


_current: ContextVar[Open | None] = ContextVar("agentlightning_autogen_open", default=None)


def innermost() -> Open | None:
    """Return the open part of the current rollout that contains this code."""
    recorder, part = current_recorder(), _current.get()
    while part is not None and (part.ended or part.recorder() is not recorder):
        part = part.parent
    return part if recorder is not None else None


@contextmanager
def current(part: Open | None) -> Generator[None]:
    """Make a part the current one within the block. None stands for the rollout itself."""
    token = _current.set(part)
    try:
        yield
    finally:
        _current.reset(token)


def begin(kind: SpanKind, name: str, owner: object, parent: Open | None, *, agent: str | None = None, quiet: bool = False) -> Open | None:
    """Start a part, or return None outside a rollout. `agent` names the acting agent if it differs from the parent's."""
    recorder = current_recorder()
    if recorder is None:
        return None
    above = parent if not quiet else None
    while above is not None and not above.used:
        above.used, above = True, above.parent
    agent = agent or (parent.agent if parent is not None else None)
    return Open(kind=kind, name=name, owner=owner, recorder=ref(recorder), parent=parent, agent=agent, quiet=quiet)


def end(part: Open, *, call_id: str | None = None, **attributes: JSON) -> None:
    """Record a part as a span, once."""
    recorder = part.recorder()
    if part.ended or recorder is None:
        return
    part.ended = True
    part.dropped = part.quiet and not part.used
    if part.dropped:
        return
    parent = part.parent
    while parent is not None and parent.dropped:
        parent = parent.parent
    recorder.add(
        Span(
            id=part.id, attempt_id=recorder.attempt.id, kind=part.kind, name=part.name,
            parent_id=parent.id if parent is not None else None, call_id=call_id, agent=part.agent,
            started=part.started, ended=time.time(), attributes={**part.attributes, **attributes},
        )
    )  # fmt: skip


@contextmanager
def logged(part: Open) -> Generator[None]:
    """Log an error of the recorder, so that it does not hide the program's own."""
    try:
        yield
    except LightningError as error:
        log.error("the span of %s %r could not be recorded: %s", part.kind, part.name, error)


class Following(Protocol):
    """The part that a stream belongs to."""

    def here(self) -> AbstractContextManager[None]:
        """Run the block as one step of the part."""
        ...

    def finish(self, result: Any) -> None:
        """Set the result. Later calls have no effect."""
        ...

    def fail(self, error: BaseException) -> None:
        """End the part with an error, or because its consumer left. No effect after it has finished."""
        ...


async def followed(stream: AsyncIterator[Any], start: Callable[[], Following | None], last: type | None) -> AsyncGenerator[Any]:
    """Yield the stream's items, and run each step inside the part that `start` opens at the first.

    An item of type `last` is the result. It is reported before it is yielded, because few consumers read further. Without such a type, the
    last item is the result. If no such item arrives, the result is None.
    """
    part, item = start(), None
    try:
        while True:
            with part.here() if part is not None else nullcontext():
                try:
                    item = await anext(stream)
                except StopAsyncIteration:
                    break
            if part is not None and last is not None and isinstance(item, last):
                part.finish(item)
            yield item
        if part is not None:
            part.finish(item if last is None else None)
    except BaseException as error:
        if part is not None:
            part.fail(error)
        raise
    finally:
        if isinstance(stream, AsyncGenerator):
            with part.here() if part is not None else nullcontext():
                await stream.aclose()


@cache
def askers() -> Askers:
    """Return this process's agents by the tool calls that they asked for."""
    return Askers()


@cache
def _complained() -> set[str]:
    """Adapter faults that this process has already logged."""
    return set()


@contextmanager
def guarded(what: str) -> Generator[None]:
    """Log an adapter fault instead of raising it into the program."""
    try:
        yield
    except LightningError:
        raise
    except Exception as error:
        text = f"the AutoGen adapter could not record {what}: {failure(error)}"
        if (kind := f"{what} {type(error).__name__}") not in _complained():
            _complained().add(kind)
            log.error(text, exc_info=error)
        recorder = current_recorder()
        if recorder is not None:
            with suppress(RuntimeError):  # the rollout's event loop is closed
                recorder.add(Span(attempt_id=recorder.attempt.id, kind="note", name=text, attributes={"source": "autogen"}))
