"""Sends the requests of the `openai` library to the gateway of the current rollout, in the name of its attempt.

`BaseClient._build_request` runs once for each try, in the caller's context, for plain, asynchronous and Azure clients. (Azure's never
reach `_prepare_options` of the base.) The key goes to the gateway of the rollout and to no other address.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any, TypeAlias

from agentlightning.capture.addressing import address
from agentlightning.capture.library_patch import LibraryPatch, Models
from agentlightning.capture.recorder import Recorder
from agentlightning.capture.routing import ClientRequest
from agentlightning.capture.to_json import mapping

OF_ROLLOUT = "agentlightning_of_rollout"
"""Attribute of a client that an adapter made its framework's default. Its requests belong to the rollout, whatever they name."""

Unclaimed: TypeAlias = Callable[[Recorder, Any], None]
"""Called with the options of a request that goes to the gateway outside any model call of a framework."""


class OpenAIPatch(LibraryPatch):
    """The patch of the clients of the `openai` library."""

    library = "openai._base_client"
    methods = (("BaseClient", "_build_request"),)

    def __init__(self, models: Models, unclaimed: Callable[[], Collection[Unclaimed]]) -> None:
        super().__init__(models)
        self._unclaimed = unclaimed

    def wrap(self, owner: type, original: Callable[..., Any]) -> Callable[..., Any]:
        def build(client: Any, options: Any, **kwargs: Any) -> Any:
            return original(client, route(client, options, self.models(), self._unclaimed()), **kwargs)

        return build


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
    if isinstance(client, import_module(OpenAIPatch.library).AsyncAPIClient):
        # A client that outlives an event loop (a module-level agent, two runs) must not keep connections of the old one.
        options.headers["Connection"] = "close"
    return options
