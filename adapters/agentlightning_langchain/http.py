"""The HTTP hook: what the `openai` library sends during a rollout goes to that rollout's gateway, in that attempt's name.

`BaseClient._build_request` runs once for each try, in the caller's context, for plain, asynchronous and Azure clients alike (Azure's
do not reach `_prepare_options` of the base). The key goes to the gateway of the rollout and to no other address: the address and the
key are set together, and only here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit
from uuid import uuid5

from openai._base_client import AsyncAPIClient, BaseClient  # pyright: ignore[reportPrivateUsage]

from agentlightning import recording
from agentlightning.recording import CALL_HEADER, KEY_HEADER, Recorder
from agentlightning_langchain.runs import model_run
from agentlightning_langchain.values import mapping

LOOPBACK = ("localhost", "127.0.0.1", "::1")
DEPLOYMENT = re.compile(r"^/?deployments/[^/]+(?=/)")
"""Where Azure's clients put the name of the model."""
HEADERS = ("authorization", "api-key", KEY_HEADER.lower(), CALL_HEADER.lower())
"""Request headers that are the hook's on the way to a gateway."""


class Hook:
    """The patch of the `openai` clients: put on once, taken off by `remove`."""

    def __init__(self) -> None:
        self._original: Any = None

    def put(self, models: Callable[[], Collection[str]]) -> None:
        """Patch. `models` are the names, or patterns, of models that stand for the rollout's."""
        if self._original is not None:
            return
        original = self._original = cast("Any", BaseClient)._build_request

        @wraps(original)
        def build(client: Any, options: Any, **kwargs: Any) -> Any:
            return original(client, route(client, options, models()), **kwargs)

        cast("Any", BaseClient)._build_request = build

    def remove(self) -> None:
        if self._original is not None:
            cast("Any", BaseClient)._build_request = self._original
            self._original = None


def route(client: Any, options: Any, models: Collection[str]) -> Any:
    """The options of one request, sent to the gateway where the request is the rollout's own."""
    run = model_run()
    recorder = (run.recorder() if run is not None else None) or recording.current()
    if recorder is None:
        return options
    llm, body = recorder.llm, mapping(options.json_data)
    model = body.get("model")
    if not llm.base_url:  # `agl.rollout` without a gateway: spans and rewards are recorded, calls go where they went before
        if run is not None:
            run.elsewhere = "the rollout has no gateway; give agl.rollout its address (`gateway`, or AGL_GATEWAY) to record tokens as well"
        return options
    home, base = urlsplit(llm.base_url), urlsplit(str(client.base_url))
    target = urlsplit(str(options.url))
    absolute = target if target.scheme else None
    there = _below(absolute or base, home)
    if not there and not (isinstance(model, str) and any(fnmatchcase(model, name) for name in (llm.model, *models))):
        if run is not None:
            run.elsewhere = (
                f"another address: the request went to {(absolute or base).netloc} for model {model!r}, not to the rollout's gateway; "
                f"where that model stands for the one in training: agentlightning_langchain.install(models=[{model!r}])"
            )
        return options
    path = _path(absolute, home if there else base) if absolute is not None else str(options.url)
    options.url = llm.base_url.rstrip("/") + "/" + DEPLOYMENT.sub("", path).lstrip("/")
    if model is not None:
        options.json_data = {**body, "model": llm.model}
    options.headers = _headers(options.headers, recorder)
    if isinstance(client, AsyncAPIClient):
        # A client that outlives an event loop (a module-level agent, two runs) must not be left with connections of the old one.
        options.headers["Connection"] = "close"
    if run is not None:
        # A try of its own id: the gateway counts each request, and the answer says which one it was.
        call_id = uuid5(run.id, str(len(run.sent))).hex if run.sent else run.id.hex
        run.sent.append((options.idempotency_key, call_id))
        options.headers[CALL_HEADER] = call_id
    return options


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
