"""`agl view`: the page as a server of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from importlib import import_module
from urllib.parse import quote

from starlette.routing import BaseRoute

from agentlightning.config.store_address import shown_address, store_file
from agentlightning.gateway.app_server import AppServer
from agentlightning.page.app import page_app, page_routes
from agentlightning.page.library import Library
from agentlightning.records.source import RecordsSource
from agentlightning.serving.serve import Shown, until_interrupted
from agentlightning.stores.common import open_store


def serve_page(library: Library, *, host: str, port: int, token: str, ready: Callable[[str], None]) -> None:
    """Serve the page until SIGINT or SIGTERM. `ready` is called once, with the link. Raises `GatewayError` if the address is not free."""

    async def serve_until_stopped() -> None:
        for records in library.stores.values():
            await _check_readable(records)
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


async def _check_readable(records: RecordsSource) -> None:
    """Raise `StoreError` for a file that is no store. A store elsewhere may be back when the page reads it."""
    if store_file(records.address) is not None:
        store = open_store(records.address)
        try:
            await store.list(limit=1)
        finally:
            await store.close()


class ServedPage:
    """The page of `agl serve`: the store that records the calls, the run that trained the model, and the playground. Whoever opened the
    store closes it."""

    def __init__(self, shown: Shown) -> None:
        name, run = shown_address(shown.address), shown.run
        stores = {name: RecordsSource(shown.address)}
        self._library = Library(None, stores, name) if run is None else Library(run.path.parent, stores, only=run.name)
        self._library.adopt(name, shown.store)
        self.routes: Sequence[BaseRoute] = page_routes(self._library, shown.token, shown.playground)

    def stop(self) -> None:
        """See `Page`."""
        self._library.closing = True

    async def close(self) -> None:
        """See `Page`."""
        await self._library.close()


def link(url: str, token: str) -> str:
    """The address of the page with the token, in the part that a browser keeps to itself."""
    return f"{url}/#token={quote(token, safe='')}"
