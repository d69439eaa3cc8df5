"""Sends the requests of the `openai` library to the gateway of the current rollout, in the name of its attempt.

`BaseClient._build_request` runs once for each try, in the caller's context, for plain, asynchronous and Azure clients. (Azure's never
reach `_prepare_options` of the base.) The key goes to the gateway of the rollout and to no other address.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, TypeAlias, cast

from agentlightning.capture.addressing import address
from agentlightning.capture.recorder import Recorder
from agentlightning.capture.routing import ClientRequest
from agentlightning.capture.to_json import mapping

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
    """The options of one request, addressed to the gateway if the request belongs to a rollout."""
    body = mapping(options.json_data)
    request = ClientRequest(str(options.url), str(client.base_url), body.get("model"), bool(getattr(client, OF_ROLLOUT, False)))
    addressed = address(request, models, body)
    if addressed is None:
        return options
    options.url = addressed.url
    if body:
        options.json_data = addressed.body(body)
    if addressed.call is None:
        for tell in unclaimed:
            tell(addressed.recorder, options)
    options.headers = addressed.headers(mapping(options.headers), options.idempotency_key)
    if isinstance(client, _library().AsyncAPIClient):
        # A client that outlives an event loop (a module-level agent, two runs) must not keep connections of the old one.
        options.headers["Connection"] = "close"
    return options


def _library() -> Any:
    """The module of the clients. Imported late, because an adapter without the `openai` library installs no patch."""
    from openai import _base_client  # pyright: ignore[reportPrivateUsage]

    return cast("Any", _base_client)
