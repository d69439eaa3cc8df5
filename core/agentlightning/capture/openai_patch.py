"""Sends the requests of the `openai` library to the gateway of the current rollout, in the name of its attempt.

All adapters of the process share one patch. `BaseClient._build_request` runs once for each try, in the caller's context, for plain,
asynchronous and Azure clients. (Azure's never reach `_prepare_options` of the base.) The key goes to the gateway of the rollout and to no
other address: only this file sets both, together.

An adapter opens a `ModelCall` when its framework starts to call a model. The next requests in the same context belong to that call. Joining
finds the request that an answer belongs to. Nothing is guessed: a call without a join has a reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, wraps
from threading import Lock
from typing import Any, TypeAlias, cast
from uuid import UUID, uuid5
from weakref import WeakKeyDictionary, ref

from agentlightning.capture.recorder import CALL_HEADER, KEY_HEADER, Recorder, current
from agentlightning.capture.routing import ClientRequest, ToGateway, destination
from agentlightning.capture.to_json import mapping
from agentlightning.types import new_id

HEADERS = ("authorization", "api-key", KEY_HEADER.lower(), CALL_HEADER.lower())
"""Request headers that this patch sets on the way to a gateway."""
CALL_ID = re.compile(r"[0-9a-f]{32}")
"""A call id. Vendors use the field `system_fingerprint` for their own names (`fp_...`)."""
OF_ROLLOUT = "agentlightning_of_rollout"
"""Attribute of a client that an adapter made its framework's default. Its requests belong to the rollout, whatever they name."""

Unclaimed: TypeAlias = Callable[[Recorder, Any], None]
"""Called with the options of a request that goes to the gateway outside any model call of a framework."""


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
    open: bool = True

    @classmethod
    def start(cls, adapter: str, recorder: Recorder, id: str | None = None) -> ModelCall:
        """Open a call. Later requests in this context belong to it until it ends."""
        call = cls(adapter, ref(recorder), id or new_id())
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

    def end(self, told: object = None, *, otherwise: str | None = None) -> tuple[str | None, str | None]:
        """Close the call. Returns the id of the recorded call behind the answer, or None and the reason.

        `told`: the answer's `system_fingerprint` (or header), if the framework keeps it. Without it, the id counts only if the call
        made one request. `otherwise`: the adapter's reason for a call without requests.
        """
        self.open = False
        told = told if isinstance(told, str) and CALL_ID.fullmatch(told) else None
        if told is not None and not self.sent and self.elsewhere is not None:
            told = None  # another vendor's
        call_id = told or self._sent()
        if call_id is None:
            return None, self._cause(otherwise)
        recorder = self.recorder()
        if recorder is not None and not clients().claim(recorder, call_id):
            return None, f"a cache: another span already has this answer (call {call_id})"
        return call_id, None

    def _sent(self) -> str | None:
        requests = {request for request, _ in self.sent}
        return self.sent[-1][1] if len(requests) == 1 else None

    def _cause(self, otherwise: str | None) -> str:
        if self.sent:
            return f"this model call sent {len(self.sent)} requests, and the answer does not name its request"
        return self.elsewhere or otherwise or "no request was seen: a cache, a fake model, or a client other than the `openai` library"


_open_call: ContextVar[ModelCall | None] = ContextVar("agentlightning_model_call", default=None)


def model_call() -> ModelCall | None:
    """The model call that is open here, or None. (The variable may hold an ended one: another task may report the end.)"""
    call = _open_call.get()
    return call if call is not None and call.open and call.recorder() is not None else None


class Clients:
    """The patch of the `openai` clients. The first adapter applies it, and the last one removes it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._models: dict[str, frozenset[str]] = {}
        self._unclaimed: dict[str, Unclaimed] = {}
        self._original: Any = None
        self._claimed: WeakKeyDictionary[Recorder, set[str]] = WeakKeyDictionary()

    def install(self, adapter: str, models: Collection[str] = (), *, unclaimed: Unclaimed | None = None) -> None:
        """Route requests for this adapter. Idempotent: `models` add to its earlier ones.

        Requests for the rollout's model, or to its gateway, go to that gateway. `models` are further names, or patterns, for that model.
        Requests for other models stay as they are, without the rollout's key.
        """
        with self._lock:
            self._models[adapter] = self._models.get(adapter, frozenset()) | ({models} if isinstance(models, str) else set(models))
            if unclaimed is not None:
                self._unclaimed[adapter] = unclaimed
            if self._original is None:
                self._patch()

    def uninstall(self, adapter: str) -> None:
        """Undo `install` of this adapter."""
        with self._lock:
            self._models.pop(adapter, None)
            self._unclaimed.pop(adapter, None)
            if not self._models and self._original is not None:
                _library().BaseClient._build_request = self._original
                self._original = None

    def claim(self, recorder: Recorder, call_id: str) -> bool:
        """True for the first span of the attempt that names the call."""
        with self._lock:
            claimed = self._claimed.setdefault(recorder, set())
            if call_id in claimed:
                return False
            claimed.add(call_id)
        return True

    def _patch(self) -> None:
        original = self._original = _library().BaseClient._build_request

        @wraps(original)
        def build(client: Any, options: Any, **kwargs: Any) -> Any:
            models = [name for names in self._models.copy().values() for name in names]
            return original(client, route(client, options, models, tuple(self._unclaimed.values())), **kwargs)

        _library().BaseClient._build_request = build


@cache
def clients() -> Clients:
    """The patch of this process, one for all adapters."""
    return Clients()


def route(client: Any, options: Any, models: Collection[str], unclaimed: Collection[Unclaimed] = ()) -> Any:
    """The options of one request, addressed to the gateway if the request belongs to the rollout."""
    call = model_call()
    recorder = (call.recorder() if call is not None else None) or current()
    if recorder is None:
        return options
    body = mapping(options.json_data)
    if call is not None:
        call.asked = body
    of_rollout = bool(getattr(client, OF_ROLLOUT, False)) or (call is not None and call.own)
    request = ClientRequest(str(options.url), str(client.base_url), body.get("model"), of_rollout)
    target = destination(request, recorder.llm, models)
    if isinstance(target, ToGateway):
        return _to_gateway(client, options, target.url, recorder, call, unclaimed)
    if call is not None:
        call.elsewhere = target.reason(call.adapter)
    return options


def _to_gateway(client: Any, options: Any, url: str, recorder: Recorder, call: ModelCall | None, unclaimed: Collection[Unclaimed]) -> Any:
    """Address a request to the gateway, in the name of the attempt and of its model call."""
    body = mapping(options.json_data)
    options.url = url
    if body.get("model") is not None:
        options.json_data = {**body, "model": recorder.llm.model}
    if call is None:
        for tell in unclaimed:
            tell(recorder, options)
    options.headers = _headers(options.headers, recorder)
    if isinstance(client, _library().AsyncAPIClient):
        # A client that outlives an event loop (a module-level agent, two runs) must not keep connections of the old one.
        options.headers["Connection"] = "close"
    if call is not None:
        # Every try has an id of its own: the gateway counts each request, and the answer tells which one it answers.
        call_id = uuid5(UUID(call.id), str(len(call.sent))).hex if call.sent else call.id
        call.sent.append((options.idempotency_key, call_id))
        options.headers[CALL_HEADER] = call_id
    return options


def _library() -> Any:
    """The module of the clients. Imported late, because an adapter without the `openai` library installs no patch."""
    from openai import _base_client  # pyright: ignore[reportPrivateUsage]

    return cast("Any", _base_client)


def _headers(headers: Any, recorder: Recorder) -> dict[str, Any]:
    key = recorder.llm.api_key
    return {
        **{name: value for name, value in mapping(headers).items() if name.lower() not in HEADERS},
        "Authorization": f"Bearer {key}",
        "api-key": key,  # Azure's clients would add their own
        KEY_HEADER: key,
    }
