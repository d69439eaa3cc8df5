"""`agl store serve`: a store as a server of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack

from agentlightning.gateway.app_server import AppServer
from agentlightning.runner.rollout import DEFAULT_STORE
from agentlightning.serving.serve import until_interrupted
from agentlightning.stores.common import open_store
from agentlightning.telemetry.store_app import store_app


def serve_store(address: str | None, *, host: str, port: int, token: str, ready: Callable[[str], None]) -> None:
    """Serve a store until SIGINT or SIGTERM. `ready` is called once, with its address for clients.

    Raises `GatewayError` when the address is not free.
    """

    async def serve_until_stopped() -> None:
        async with AsyncExitStack() as stack:
            store = open_store(address or os.environ.get("AGL_STORE") or DEFAULT_STORE)
            stack.push_async_callback(store.close)
            server = AppServer(store_app(store, token), host=host, port=port)
            await server.start()
            stack.push_async_callback(server.stop)
            ready(server.url.replace("://", f"://{token}@", 1))
            await until_interrupted()

    asyncio.run(serve_until_stopped())
