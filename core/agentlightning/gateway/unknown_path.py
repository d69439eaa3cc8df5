"""Requests to a path that the gateway does not serve. One with an attempt's key is recorded as a refused call."""

from __future__ import annotations

import time
from collections.abc import Collection

from starlette.requests import Request
from starlette.responses import Response

from agentlightning.gateway.api.answers import json_response
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.call import Service
from agentlightning.gateway.record import Draft, Recording


class UnknownPath:
    """Answers such requests with the paths that are served."""

    def __init__(self, service: Service, served: Collection[str]) -> None:
        self._service, self._served = service, f"POST {', '.join(served)} or GET /v1/models"

    async def answer(self, request: Request, error: Exception) -> Response:
        """The answer to a request that no route takes. `error`: Starlette's, with the status."""
        refusal = Refused(
            f"This gateway does not serve {request.method} {request.url.path}. Use {self._served}, with or without /v1.",
            status=getattr(error, "status_code", 404), code="unknown_url",
        )  # fmt: skip
        await self._record(request, refusal)
        return json_response(refusal.body, refusal.status)

    async def _record(self, request: Request, refusal: Refused) -> None:
        try:
            state = await self._service.callers.attempt(request.headers)
        except Refused:  # nobody's
            return
        if state is not None and state.attempt.status == "running":
            incoming = state.open(request.headers, b"", time.time())
            await Recording(self._service.store, incoming).write(Draft(), "refused", str(refusal))
