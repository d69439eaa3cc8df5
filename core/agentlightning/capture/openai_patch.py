"""What the `openai` library sends during a rollout goes to that rollout's gateway, in that attempt's name.

One patch for the process, which its adapters share: `BaseClient._build_request` runs once for each try, in the caller's context, for
plain, asynchronous and Azure clients alike (Azure's do not reach `_prepare_options` of the base). The key goes to the gateway of the
rollout and to no other address: the address and the key are set together, and only here.

An adapter opens a `ModelCall` when its framework starts to call a model; the requests that follow in the same context are that call's.
Joining is telling which of them the answer is of. Nothing is guessed: a call that cannot be joined says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, wraps
from threading import Lock
from typing import Any, TypeAlias, cast
from urllib.parse import SplitResult, urlsplit
from uuid import UUID, uuid5
from weakref import WeakKeyDictionary, ref

from agentlightning.capture.recorder import CALL_HEADER, KEY_HEADER, Recorder, current
from agentlightning.capture.to_json import mapping
from agentlightning.types import new_id

LOOPBACK = ("localhost", "127.0.0.1", "::1")
DEPLOYMENT = re.compile(r"^/?deployments/[^/]+(?=/)")
"""Where Azure's clients put the name of the model."""
HEADERS = ("authorization", "api-key", KEY_HEADER.lower(), CALL_HEADER.lower())
"""Request headers that are ours on the way to a gateway."""
CALL_ID = re.compile(r"[0-9a-f]{32}")
"""The form of a call id. Vendors use the field `system_fingerprint` for names of their own (`fp_...`)."""
OF_ROLLOUT = "agentlightning_of_rollout"
"""Attribute, true of a client that an adapter made to be its framework's default: its requests are the rollout's, whatever they name."""

Unclaimed: TypeAlias = Callable[[Recorder, Any], None]
"""Told of a request (its options) that went to the gateway while no model call of a framework was open."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class ModelCall:
    """One call of a model by a framework, from its start to its end. `start` it where the requests will be made, and `end` it once."""

    adapter: str
    """Import name of the adapter, which advice names."""
    recorder: ref[Recorder]
    """Weak: a call that never ends must not keep its rollout in memory."""
    id: str = field(default_factory=new_id)
    """32 hexadecimal digits: the call id that its first request asks for."""
    sent: list[tuple[str | None, str]] = field(default_factory=list[tuple[str | None, str]])
    """Requests that went to the gateway: (the request, its call id); a retry is the same request again."""
    asked: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Body of its last request, as the framework made it."""
    elsewhere: str | None = None
    """Where a request went that did not go to the gateway, with the way out."""
    own: bool = False
    """Whether its requests are the rollout's, whatever model and address they name."""
    open: bool = True

    @classmethod
    def start(cls, adapter: str, recorder: Recorder, id: str | None = None) -> ModelCall:
        """Open a call: requests made from here on, in this context, belong to it until it ends."""
        call = cls(adapter, ref(recorder), id or new_id())
        _open_call.set(call)
        return call

    @contextmanager
    def here(self) -> Generator[None]:
        """Requests made in the block belong to the call. For a stream, whose steps run in the context of whoever consumes it."""
        token = _open_call.set(self)
        try:
            yield
        finally:
            _open_call.reset(token)

    def end(self, told: object = None, *, otherwise: str | None = None) -> tuple[str | None, str | None]:
        """Close the call: the id of the recorded call that was answered, else None and why there is none.

        `told`: what came back as `system_fingerprint` (or in the header), where the framework keeps it. Without it, the id that was sent
        counts when only one request can have been the one. `otherwise`: why, in the adapter's words, where no request was made.
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
            return None, f"a cache: the answer is that of call {call_id}, which another span names already"
        return call_id, None

    def _sent(self) -> str | None:
        requests = {request for request, _ in self.sent}
        return self.sent[-1][1] if len(requests) == 1 else None

    def _cause(self, otherwise: str | None) -> str:
        if self.sent:
            return f"{len(self.sent)} requests were sent from this model call, and the answer does not say which one it is of"
        return self.elsewhere or otherwise or "no request was seen: a cache, a fake model, or a client other than the `openai` library"


_open_call: ContextVar[ModelCall | None] = ContextVar("agentlightning_model_call", default=None)


def model_call() -> ModelCall | None:
    """The model call that is open here. (An ended one may still be in the variable: its end can be reported from another task.)"""
    call = _open_call.get()
    return call if call is not None and call.open and call.recorder() is not None else None


class Clients:
    """The patch of the `openai` clients: put on for the first adapter, taken off with the last."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._models: dict[str, frozenset[str]] = {}
        self._unclaimed: dict[str, Unclaimed] = {}
        self._original: Any = None
        self._claimed: WeakKeyDictionary[Recorder, set[str]] = WeakKeyDictionary()

    def install(self, adapter: str, models: Collection[str] = (), *, unclaimed: Unclaimed | None = None) -> None:
        """Route requests in this adapter's name. Idempotent; `models` are added to those it named before.

        Requests for the rollout's model, or to its gateway, go to that gateway whatever address they were built with; `models` are further
        names, or patterns, of models that stand for it. Other models are left alone, and never see the rollout's key.
        """
        with self._lock:
            self._models[adapter] = self._models.get(adapter, frozenset()) | ({models} if isinstance(models, str) else set(models))
            if unclaimed is not None:
                self._unclaimed[adapter] = unclaimed
            if self._original is None:
                self._patch()

    def uninstall(self, adapter: str) -> None:
        """Take back what the adapter installed."""
        with self._lock:
            self._models.pop(adapter, None)
            self._unclaimed.pop(adapter, None)
            if not self._models and self._original is not None:
                _base_client()._build_request = self._original
                self._original = None

    def claim(self, recorder: Recorder, call_id: str) -> bool:
        """Whether this is the first span of the attempt that names the call."""
        with self._lock:
            claimed = self._claimed.setdefault(recorder, set())
            if call_id in claimed:
                return False
            claimed.add(call_id)
        return True

    def _patch(self) -> None:
        original = self._original = _base_client()._build_request

        @wraps(original)
        def build(client: Any, options: Any, **kwargs: Any) -> Any:
            models = [name for names in self._models.copy().values() for name in names]
            return original(client, route(client, options, models, tuple(self._unclaimed.values())), **kwargs)

        _base_client()._build_request = build


@cache
def clients() -> Clients:
    """This process's. (Cached: the `openai` clients that it patches are the process's as well.)"""
    return Clients()


def route(client: Any, options: Any, models: Collection[str], unclaimed: Collection[Unclaimed] = ()) -> Any:
    """The options of one request, sent to the gateway where the request is the rollout's own."""
    call = model_call()
    recorder = (call.recorder() if call is not None else None) or current()
    if recorder is None:
        return options
    llm, body = recorder.llm, mapping(options.json_data)
    model = body.get("model")
    if call is not None:
        call.asked = body
    if not llm.base_url:  # `agl.rollout` without a gateway: spans and rewards are recorded, calls go where they went before
        if call is not None:
            call.elsewhere = "the rollout has no gateway; give agl.rollout its address (`gateway`, or AGL_GATEWAY) to record tokens as well"
        return options
    home, base = urlsplit(llm.base_url), urlsplit(str(client.base_url))
    target = urlsplit(str(options.url))
    absolute = target if target.scheme else None
    there = _below(absolute or base, home)
    own = there or getattr(client, OF_ROLLOUT, False) or (call is not None and call.own)
    if not own and not (isinstance(model, str) and any(fnmatchcase(model, name) for name in (llm.model, *models))):
        if call is not None:
            call.elsewhere = (
                f"another address: the request went to {(absolute or base).netloc} for model {model!r}, not to the rollout's gateway; "
                f"where that model stands for the one in training: {call.adapter}.install(models=[{model!r}])"
            )
        return options
    path = _path(absolute, home if there else base) if absolute is not None else str(options.url)
    options.url = llm.base_url.rstrip("/") + "/" + DEPLOYMENT.sub("", path).lstrip("/")
    if model is not None:
        options.json_data = {**body, "model": llm.model}
    if call is None:
        for tell in unclaimed:
            tell(recorder, options)
    options.headers = _headers(options.headers, recorder)
    if _is_async(client):
        # A client that outlives an event loop (a module-level agent, two runs) must not be left with connections of the old one.
        options.headers["Connection"] = "close"
    if call is not None:
        # A try of its own id: the gateway counts each request, and the answer says which one it was.
        call_id = uuid5(UUID(call.id), str(len(call.sent))).hex if call.sent else call.id
        call.sent.append((options.idempotency_key, call_id))
        options.headers[CALL_HEADER] = call_id
    return options


def _base_client() -> Any:
    from openai._base_client import BaseClient  # pyright: ignore[reportPrivateUsage]

    return cast("Any", BaseClient)


def _is_async(client: Any) -> bool:
    from openai._base_client import AsyncAPIClient  # pyright: ignore[reportPrivateUsage]

    return isinstance(client, AsyncAPIClient)


def _headers(headers: Any, recorder: Recorder) -> dict[str, Any]:
    key = recorder.llm.api_key
    return {
        **{name: value for name, value in mapping(headers).items() if name.lower() not in HEADERS},
        "Authorization": f"Bearer {key}",
        "api-key": key,  # Azure's clients would add their own
        KEY_HEADER: key,
    }


def _below(url: SplitResult, home: SplitResult) -> bool:
    return _origin(url) == _origin(home) and (url.path.rstrip("/") + "/").startswith(home.path.rstrip("/") + "/")


def _origin(url: SplitResult) -> tuple[str, str, int | None]:
    host = url.hostname or ""
    return url.scheme, "loopback" if host in LOOPBACK else host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _path(url: SplitResult, base: SplitResult) -> str:
    path = url.path.removeprefix(base.path.rstrip("/"))
    return f"{path}?{url.query}" if url.query else path
