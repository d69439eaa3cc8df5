"""`/health` and `/ready`, for load balancers and Kubernetes. Neither needs a key, and neither tells what the store holds."""

from __future__ import annotations

import asyncio
import logging

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from agentlightning.contracts.store import LightningStore

PATIENCE = 5.0
"""Seconds for the store to answer."""
log = logging.getLogger(__name__)


def health_routes(store: LightningStore) -> list[Route]:
    """Routes that say whether the server is alive, and whether its store answers."""

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "alive"})

    async def ready(request: Request) -> JSONResponse:
        try:
            async with asyncio.timeout(PATIENCE):
                await store.wait(0, timeout=0)
        except Exception as error:  # whatever it is, the server cannot work; the log has what a stranger need not know
            log.warning("The server is not ready: the store does not answer. %s: %s", type(error).__name__, error)
            return JSONResponse({"status": "not ready", "problem": "the store does not answer"}, 503)
        return JSONResponse({"status": "ready"})

    return [Route("/health", health), Route("/ready", ready)]
