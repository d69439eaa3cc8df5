"""One model call of a framework, and the requests that it sends to the gateway.

An adapter opens a `ModelCall` when its framework starts to call a model. The next requests in the same context belong to that call. Joining
finds the request that an answer belongs to. Nothing is guessed: a call without a join has a reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import Any
from uuid import UUID, uuid5
from weakref import WeakKeyDictionary, ref

from agentlightning.capture.recorder import Recorder
from agentlightning.types import new_id

ANSWER_ID = re.compile(r"(?:chatcmpl-|cmpl-|msg_|resp_)?([0-9a-f]{32})")
"""The call id in an answer of the gateway: alone (`system_fingerprint`), or in the answer's own `id`. Vendors have other ids."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class ModelCall:
    """One model call of a framework. Call `start` in the context that makes the requests, and `end` once."""

    adapter: str
    """Import name of the adapter, for advice in texts."""
    recorder: ref[Recorder]
    """Weak: a call that never ends must not keep its rollout in memory."""
    id: str = field(default_factory=new_id)
    """32 hexadecimal digits: the call id of its first request."""
    sent: list[tuple[str | None, str]] = field(default_factory=list[tuple[str | None, str]])
    """(request, call id) of requests to the gateway. A retry has the same request again."""
    asked: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Body of its last request, in the framework's own words."""
    elsewhere: str | None = None
    """The reason why a request did not go to the gateway, with the way out."""
    own: bool = False
    """True: its requests belong to the rollout, whatever model and address they name."""
    agent: str | None = None
    """Name of the agent that calls, if the framework tells it before the request."""
    open: bool = True

    @classmethod
    def start(cls, adapter: str, recorder: Recorder, id: str | None = None, *, agent: str | None = None) -> ModelCall:
        """Open a call of an agent. Later requests in this context belong to it until it ends."""
        call = cls(adapter, ref(recorder), id or new_id(), agent=agent)
        _open_call.set(call)
        return call

    @contextmanager
    def here(self) -> Generator[None]:
        """Requests in the block belong to the call. Use it for a stream: its steps run in the context of its consumer."""
        token = _open_call.set(self)
        try:
            yield
        finally:
            _open_call.reset(token)

    def next_request(self, request: str | None) -> str:
        """Count a request to the gateway, and return its call id. A retry names the same `request` as the try before.

        Every try has an id of its own: the gateway counts each request, and the answer tells which one it answers.
        """
        call_id = uuid5(UUID(self.id), str(len(self.sent))).hex if self.sent else self.id
        self.sent.append((request, call_id))
        if (recorder := self.recorder()) is not None:
            with _claims().lock:
                _claims().senders.setdefault(recorder, {})[call_id] = self.adapter
        return call_id

    def end(self, told: object = None, *, otherwise: str | None = None) -> tuple[str | None, str | None]:
        """Close the call. Returns the id of the recorded call behind the answer, or None and the reason.

        `told`: what the framework keeps of the answer: its `system_fingerprint`, its header, or its id (`chatcmpl-...`, `msg_...`,
        `resp_...`). Without it, the id counts only if the call made one request. `otherwise`: the adapter's reason for a call without
        requests.
        """
        self.open = False
        call_id = self._named(told) or self._only_request()
        if call_id is None:
            return None, self._cause(otherwise)
        recorder = self.recorder()
        if recorder is not None and not claim(recorder, call_id):
            return None, f"a cache: another span already has this answer (call {call_id})"
        return call_id, None

    def _named(self, told: object) -> str | None:
        """The call id that an answer names, unless the answer is another vendor's."""
        match = ANSWER_ID.fullmatch(told) if isinstance(told, str) else None
        if match is None:
            return None
        call_id = match[1]
        elsewhere = self.elsewhere is not None and call_id not in [sent for _, sent in self.sent]
        return None if elsewhere else call_id

    def _only_request(self) -> str | None:
        requests = {request for request, _ in self.sent}
        return self.sent[-1][1] if len(requests) == 1 else None

    def _cause(self, otherwise: str | None) -> str:
        if self.sent:
            return f"this model call sent {len(self.sent)} requests, and the answer does not name its request"
        return self.elsewhere or otherwise or "no request was seen: a cache, a fake model, or a client that is not routed"


_open_call: ContextVar[ModelCall | None] = ContextVar("agentlightning_model_call", default=None)


def model_call() -> ModelCall | None:
    """The model call that the next request here belongs to, or None: the open one, else one that a finder knows."""
    return opened_call() or next((call for find in _claims().finders.values() if (call := find()) is not None), None)


def opened_call() -> ModelCall | None:
    """The model call that is open here, or None. (The variable may hold an ended one: another task may report the end.)"""
    call = _open_call.get()
    return call if call is not None and call.open and call.recorder() is not None else None


def find_calls(adapter: str, find: Callable[[], ModelCall | None] | None) -> None:
    """Ask a function for the call of a request that is sent outside every open call. None: ask it no longer."""
    with _claims().lock:
        finders = {name: other for name, other in _claims().finders.items() if name != adapter}
        _claims().finders = finders if find is None else {**finders, adapter: find}


def sender(recorder: Recorder, call_id: str) -> str | None:
    """Import name of the adapter whose model call sent a request of the attempt; None: no model call did."""
    with _claims().lock:
        return _claims().senders.get(recorder, {}).get(call_id)


@contextmanager
def no_model_call() -> Generator[None]:
    """Requests in the block belong to no call that is open around it."""
    token = _open_call.set(None)
    try:
        yield
    finally:
        _open_call.reset(token)


class _Claims:
    """The recorded calls that a span names already, and who sent their requests."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.of: WeakKeyDictionary[Recorder, set[str]] = WeakKeyDictionary()
        self.senders: WeakKeyDictionary[Recorder, dict[str, str]] = WeakKeyDictionary()
        self.finders: dict[str, Callable[[], ModelCall | None]] = {}


@cache
def _claims() -> _Claims:
    return _Claims()


def claim(recorder: Recorder, call_id: str) -> bool:
    """True for the first span of the attempt that names the call."""
    claims = _claims()
    with claims.lock:
        claimed = claims.of.setdefault(recorder, set())
        if call_id in claimed:
            return False
        claimed.add(call_id)
    return True
