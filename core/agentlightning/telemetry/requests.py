"""Measures the requests of an ASGI app, and answers `/metrics` to clients with the token.

A path is a label only if the app serves it, so strangers cannot add labels.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentlightning.contracts.store import LightningStore
from agentlightning.stores.health import PATIENCE
from agentlightning.stores.http_client import METHODS, PREFIX
from agentlightning.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from prometheus_client import Gauge, Histogram

PATH = "/metrics"
UNKNOWN = "unknown"
"""The label of paths that the app does not serve."""
CLIENT_LEFT = "499"
log = logging.getLogger(__name__)


class MeasuredRequests:
    """The app, with its requests measured. Paths that share an endpoint share the label of the first."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[BaseRoute]) -> None:
        self._app, self._metrics = app, metrics
        self._by_path: dict[str, tuple[Gauge, Histogram]] = {}
        served = [route for route in routes if isinstance(route, Route)]
        first = {route.endpoint: route.path for route in reversed(served)}
        self._labels = {route.path: first[route.endpoint] for route in served if not route.param_convertors}
        self._labels |= {f"{PREFIX}/{name}": f"{PREFIX}/{name}" for name in METHODS}
        self._patterns = [(route, first[route.endpoint]) for route in served if route.param_convertors]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, status, began = self._label(scope), CLIENT_LEFT, time.perf_counter()

        async def send_measured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        in_flight, seconds = self._of_path(path)
        in_flight.inc()
        try:
            await self._app(scope, receive, send_measured)
        except Exception:
            status = "500"
            raise
        finally:
            in_flight.dec()
            self._metrics.requests.labels(path, status).inc()
            seconds.observe(time.perf_counter() - began)

    def _of_path(self, path: str) -> tuple[Gauge, Histogram]:
        """The metrics with this label, which are slow to look up."""
        if path not in self._by_path:
            self._by_path[path] = self._metrics.in_flight.labels(path), self._metrics.request_seconds.labels(path)
        return self._by_path[path]

    def _label(self, scope: Scope) -> str:
        label = self._labels.get(scope["path"])
        if label is not None:
            return label
        return next((label for route, label in self._patterns if route.matches(scope)[0] is not Match.NONE), UNKNOWN)


def metrics_route(metrics: Metrics, store: LightningStore, admits: Callable[[Request], bool]) -> Route:
    """Return the route of `/metrics`. `admits`: whether a request has the token."""

    async def answer(request: Request) -> Response:
        from prometheus_client.exposition import choose_encoder

        if not admits(request):
            return PlainTextResponse("The token is missing or wrong. Send it as `Authorization: Bearer TOKEN`.\n", 401)
        try:
            async with asyncio.timeout(PATIENCE):
                metrics.snapshot.counts = await store.counts()
        except Exception as error:  # whatever it is, the other metrics matter all the more
            log.warning("The metrics lack the queue: the store does not answer. %s: %s", type(error).__name__, error)
            metrics.snapshot.counts = None
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), media_type=media_type)

    return Route(PATH, answer)
