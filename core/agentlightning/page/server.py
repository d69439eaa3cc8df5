"""`agl view`: the page as a server of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib import import_module
from urllib.parse import quote

from starlette.routing import BaseRoute

from agentlightning.cli.view import RecordsSource
from agentlightning.config.store_address import shown_address
from agentlightning.contracts.store import LightningStore
from agentlightning.gateway.app_server import AppServer
from agentlightning.page.app import page_app, page_routes
from agentlightning.page.library import Library
from agentlightning.serving.serve import until_interrupted


def serve_page(library: Library, *, host: str, port: int, token: str, ready: Callable[[str], None]) -> None:
    """Serve the page until SIGINT or SIGTERM. `ready` is called once, with the link. Raises `GatewayError` if the address is not free."""

    async def serve_until_stopped() -> None:
        server = AppServer(page_app(library, token), host=host, port=port)
        await server.start()
        try:
            ready(link(server.url, token))
            await asyncio.to_thread(import_module, "agentlightning.rl.trajectory.build")  # so that the first rollouts show at once
            await until_interrupted()
        finally:
            library.closing = True
            await server.stop()

    asyncio.run(serve_until_stopped())


def store_page(address: str, store: LightningStore, token: str) -> list[BaseRoute]:
    """Return the routes of a page that shows one open store, for `agl serve`. Whoever opened the store closes it."""
    name = shown_address(address)
    library = Library(None, {name: RecordsSource(address)}, start=name)
    library.adopt(name, store)
    return page_routes(library, token)


def link(url: str, token: str) -> str:
    """The address of the page with the token, in the part that a browser keeps to itself."""
    return f"{url}/#token={quote(token, safe='')}"
