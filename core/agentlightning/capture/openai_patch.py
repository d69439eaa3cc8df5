"""Sends the requests of the `openai` library to the gateway of the current rollout, in the name of its attempt.

`BaseClient._build_request` runs once for each try, in the caller's context, for plain, asynchronous and Azure clients. (Azure's never
reach `_prepare_options` of the base.) The key goes to the gateway of the rollout and to no other address.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, TypeAlias, cast

from agentlightning.capture.model_call import ModelCall, model_call
from agentlightning.capture.recorder import CALL_HEADER, KEY_HEADER, Recorder, current
from agentlightning.capture.routing import ClientRequest, ToGateway, destination
from agentlightning.capture.to_json import mapping

HEADERS = ("authorization", "api-key", KEY_HEADER.lower(), CALL_HEADER.lower())
"""Request headers that this patch sets on the way to a gateway."""
OF_ROLLOUT = "agentlightning_of_rollout"
"""Attribute of a client that an adapter made its framework's default. Its requests belong to the rollout, whatever they name."""

Unclaimed: TypeAlias = Callable[[Recorder, Any], None]
"""Called with the options of a request that goes to the gateway outside any model call of a framework."""


class OpenAIPatch:
    """The patch of the clients of the `openai` library."""

    def __init__(self, models: Callable[[], Collection[str]], unclaimed: Callable[[], Collection[Unclaimed]]) -> None:
        self._models, self._unclaimed = models, unclaimed
        self._original: Any = None

    def apply(self) -> None:
        """Patch the library, once."""
        if self._original is not None:
            return
        original = self._original = _library().BaseClient._build_request

        @wraps(original)
        def build(client: Any, options: Any, **kwargs: Any) -> Any:
            return original(client, route(client, options, self._models(), self._unclaimed()), **kwargs)

        _library().BaseClient._build_request = build

    def remove(self) -> None:
        """Leave the library as it was."""
        if self._original is not None:
            _library().BaseClient._build_request = self._original
            self._original = None


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
        options.headers[CALL_HEADER] = call.next_request(options.idempotency_key)
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
