"""A store as an ASGI app of its own."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware

from agentlightning.contracts.store import LightningStore
from agentlightning.stores.health import health_routes
from agentlightning.stores.http_server import StoreServer
from agentlightning.telemetry.metrics import Metrics
from agentlightning.telemetry.requests import MeasuredRequests, metrics_route


def store_app(store: LightningStore, token: str) -> Starlette:
    """Serve `store` under `/store/v1/`, and `/metrics`, to clients with `token`; `/health` and `/ready` to everybody."""
    metrics = Metrics()
    measured = metrics.store(store)
    server = StoreServer(measured, token)
    routes = [*server.routes, *health_routes(measured), metrics_route(metrics, measured, server.admits)]
    return Starlette(routes=routes, middleware=[Middleware(MeasuredRequests, metrics, routes)])
