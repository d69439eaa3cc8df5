"""Addresses a request to the gateway of its rollout, for every client library. Only this file sets an address and a key together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from agentlightning.capture.model_call import ModelCall, model_call
from agentlightning.capture.recorder import AGENT_HEADER, CALL_HEADER, KEY_HEADER, Recorder, current, detached, open_recorders
from agentlightning.capture.routing import ClientRequest, Rejected, ToGateway, destination, destination_outside
from agentlightning.errors import RoutingError

REPLACED = ("authorization", "api-key", "x-api-key", "x-goog-api-key", KEY_HEADER.lower(), CALL_HEADER.lower())
"""Headers of a client that do not reach the gateway: keys of vendors, and our own."""


@dataclass(frozen=True, slots=True)
class Addressed:
    """A request on its way to the gateway of a rollout."""

    url: str
    recorder: Recorder
    call: ModelCall | None
    """The model call that it belongs to."""

    def body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body, for the model of the rollout. The name of a policy stays."""
        llm, asked = self.recorder.llm, body.get("model")
        return {**body, **({"model": llm.model} if asked is not None and asked not in llm.policies else {})}

    def headers(self, headers: Mapping[str, Any], request: str | None) -> dict[str, Any]:
        """The headers, in the name of the attempt and of the model call. A retry names the same `request` as the try before."""
        key, caller = self.recorder.llm.api_key, None if self.call is None else self.call.agent
        agent = {} if caller is None else {AGENT_HEADER: quote(caller)}
        replaced = {*REPLACED, *(name.lower() for name in agent)}
        return {
            **{name: value for name, value in headers.items() if name.lower() not in replaced},
            "Authorization": f"Bearer {key}",
            "api-key": key,  # Azure's clients would add their own
            KEY_HEADER: key,
            **({CALL_HEADER: self.call.next_request(request)} if self.call is not None else {}),
            **agent,
        }


def address(request: ClientRequest, models: Collection[str], body: Mapping[str, Any]) -> Addressed | None:
    """The gateway's address for a request. None: it keeps its own.

    `models`: names and patterns that stand for the model of a rollout. Raises `RoutingError` for a request that belongs to a rollout, and
    cannot reach its gateway.
    """
    call = model_call()
    recorder = (call.recorder() if call is not None else None) or current()
    if recorder is None or detached():
        if call is not None:
            call.elsewhere = "agl.attach(None) took the call out of its rollout"
        if not detached():
            _check_outside(request, models)
        return None
    if call is not None:
        call.asked = body
        request = replace(request, of_rollout=request.of_rollout or call.own)
    target = destination(request, recorder.llm, models)
    if isinstance(target, ToGateway):
        return Addressed(target.url, recorder, call)
    if call is not None:
        call.elsewhere = target.reason if isinstance(target, Rejected) else target.reason(call.adapter)
    if isinstance(target, Rejected):
        raise RoutingError(target.reason)
    return None


def _check_outside(request: ClientRequest, models: Collection[str]) -> None:
    target = destination_outside(request, [recorder.llm for recorder in open_recorders()], models)
    if isinstance(target, Rejected):
        raise RoutingError(target.reason)
