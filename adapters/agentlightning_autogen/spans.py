"""What is open now: teams, agents, tools and model calls that have started and not ended, and the spans that they become.

An open part is the current one in the context in which its code runs, and no longer: an asynchronous generator lends its consumer's context
for each of its steps, so between two of them the consumer's own part is current again.

The adapter never changes what the program does. What it cannot record it logs once and leaves as a note in the attempt; the one error that
it lets out is the recorder's own, because records that the store refuses must not be lost in silence.
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

from agentlightning.capture.recorder import Recorder
from agentlightning.capture.recorder import current as current_recorder
from agentlightning.capture.to_json import failure
from agentlightning.errors import LightningError
from agentlightning.types import JSON, Span, SpanKind, new_id

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, weakref_slot=True, kw_only=True)
class Open:
    """A part of the program that has started."""

    kind: SpanKind
    name: str
    owner: object
    """The object that acts: what it does through its own methods is this same part."""
    recorder: ref[Recorder]
    """Weak: a part that never ends must not keep its rollout in memory."""
    parent: Open | None
    agent: str | None
    """Who acts here."""
    quiet: bool = False
    """Whether it becomes a span only when something happened inside."""
    used: bool = False
    """Whether something happened inside."""
    ended: bool = False
    id: str = field(default_factory=new_id)
    started: float = field(default_factory=time.time)
    attributes: dict[str, JSON] = field(default_factory=dict[str, JSON])


_current: ContextVar[Open | None] = ContextVar("agentlightning_autogen_open", default=None)


def innermost() -> Open | None:
    """The open part of the current rollout that this code is in."""
    recorder, part = current_recorder(), _current.get()
    while part is not None and (part.ended or part.recorder() is not recorder):
        part = part.parent
    return part if recorder is not None else None


@contextmanager
def current(part: Open) -> Generator[None]:
    """Make a part the current one for the block."""
    token = _current.set(part)
    try:
        yield
    finally:
        _current.reset(token)


def begin(kind: SpanKind, name: str, owner: object, parent: Open | None, *, agent: str | None = None, quiet: bool = False) -> Open | None:
    """A part that starts now; None outside a rollout. `agent`: who acts from here on, where it is not who acts in the parent."""
    recorder = current_recorder()
    if recorder is None:
        return None
    above = parent
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
    if part.quiet and not part.used:
        return
    recorder.add(
        Span(
            id=part.id, attempt_id=recorder.attempt.id, kind=part.kind, name=part.name,
            parent_id=part.parent.id if part.parent is not None else None, call_id=call_id, agent=part.agent,
            started=part.started, ended=time.time(), attributes={**part.attributes, **attributes},
        )
    )  # fmt: skip


@contextmanager
def logged(part: Open) -> Generator[None]:
    """Log an error of the recorder instead of raising it in place of the program's own."""
    try:
        yield
    except LightningError as error:
        log.error("the span of %s %r could not be recorded: %s", part.kind, part.name, error)


class Following(Protocol):
    """What a stream is a part of."""

    def here(self) -> AbstractContextManager[None]:
        """The block is a step of it."""
        ...

    def finish(self, result: Any) -> None:
        """It has this result; a second time is nothing."""
        ...

    def fail(self, error: BaseException) -> None:
        """An error ended it, or its consumer left; nothing where it has finished."""
        ...


async def followed(stream: AsyncIterator[Any], start: Callable[[], Following | None], last: type | None) -> AsyncGenerator[Any]:
    """What the stream yields, each of its steps within what `start` gives at the first.

    An item of the type `last` is the result and is reported before it goes out, because few consumers ask for more. Where there is no such
    type, the result is the last item; where no such item came, None.
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
def _complained() -> set[str]:
    """Faults of the adapter that this process has logged."""
    return set()


@contextmanager
def guarded(what: str) -> Generator[None]:
    """Keep a fault of the adapter away from the program, and say it."""
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
            with suppress(RuntimeError):  # the event loop of a rollout that has ended is closed
                recorder.add(Span(attempt_id=recorder.attempt.id, kind="note", name=text, attributes={"source": "autogen"}))
