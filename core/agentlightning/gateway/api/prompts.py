"""`GET /v1/prompts`: the prompts that a gateway serves, for agents outside a run."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentlightning.gateway.api.answers import json_response
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.auth import check_open
from agentlightning.gateway.call import Service

PATH = "/v1/prompts"


class Prompts:
    """Tells the texts by name to holders of the token, or of an attempt's key. Without prompts, there are none to tell."""

    def __init__(self, service: Service, prompts: Mapping[str, str]) -> None:
        self._service, self._prompts = service, dict(prompts)
        self.routes = (Route(PATH, self._answer),)

    async def _answer(self, request: Request) -> Response:
        try:
            state = await self._service.callers.attempt(request.headers)
            if state is not None:
                check_open(state.attempt)
        except Refused as refusal:
            return json_response(refusal.body, refusal.status)
        return json_response(self._prompts)
