"""`GET /v1/models` and `/healthz`: the model that the gateway serves."""

from __future__ import annotations

import time
from collections.abc import Collection

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentlightning.contracts.engine import Engine
from agentlightning.gateway.api.answers import json_response
from agentlightning.gateway.api.schema import Refused, check_model


class Cards:
    """Describes the model of an engine. `models`: further names, or patterns, for it. `policies`: names of its policies."""

    def __init__(self, engine: Engine, models: Collection[str], policies: Collection[str] = ()) -> None:
        self._engine, self._models, self._policies, self._created = engine, models, policies, int(time.time())
        self.routes = (Route("/v1/models", self._list), Route("/v1/models/{name:path}", self._model), Route("/healthz", self._health))

    def _card(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "agentlightning"}

    async def _list(self, request: Request) -> Response:
        model = self._engine.info.model
        return json_response({"object": "list", "data": [self._card(name) for name in (model, *self._policies) if name]})

    async def _model(self, request: Request) -> Response:
        name: str = request.path_params["name"]
        try:
            check_model(name, self._engine.info.model, self._engine.policy.name, self._models)
        except Refused as refusal:
            return json_response(refusal.body, refusal.status)
        return json_response(self._card(name))

    async def _health(self, request: Request) -> Response:
        policy = self._engine.policy
        return json_response({"status": "ok", "model": self._engine.info.model, "policy": policy.name, "version": policy.version})
