"""`DELETE /v1/calls`: the end of an attempt cancels the calls that still run, such as streams that the agent left early.

The recorder of an attempt sends it before the attempt is closed, so no record comes later.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from agentlightning.gateway.api.answers import json_response
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.auth import UNKNOWN, Callers

LONGEST = 10.0
"""Seconds to wait for the records of cancelled calls."""


class EndOfAttempt:
    """Cancels the calls of the attempt whose key comes with a request. It answers when the store has their records."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers

    async def answer(self, request: Request) -> Response:
        """The number of calls that it cancelled."""
        try:
            state = await self._callers.attempt(request.headers)
            if state is None:
                raise Refused(UNKNOWN, status=401, code="invalid_api_key")
        except Refused as refusal:
            return json_response(refusal.body, refusal.status)
        running = dict(state.running)
        for gone in running.values():
            gone.cancel()
        if running:
            await asyncio.wait(running, timeout=LONGEST)
        return json_response({"cancelled": len(running)})
