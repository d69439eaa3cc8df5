"""The page as routes of an ASGI app: `/` and its files for everybody, `/view/api/` for browsers that have the token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from agentlightning.page.access import HEADERS, Access, answer_json
from agentlightning.page.compare import compare, eval_tasks
from agentlightning.page.detail import conversation, detail, tokens
from agentlightning.page.group import group
from agentlightning.page.library import Library
from agentlightning.page.playground import Ask, facts
from agentlightning.page.rollouts import Filters, page
from agentlightning.page.rows import read_rollout
from agentlightning.page.run import Watching
from agentlightning.page.runs import Summaries
from agentlightning.page.settings import settings
from agentlightning.serving.playground import Playground

STATIC = Path(__file__).parent / "static"
FILES = ("app.js", "app.css", "icon.svg", "licences.txt")


def page_routes(library: Library, token: str, playground: Playground | None = None) -> list[BaseRoute]:
    """Return the routes of the page. Whoever has the token sees everything in the library, asks the model of the playground, and changes
    nothing."""
    access, api = Access(token), Api(library, playground)
    handlers = {
        "runs": api.runs, "run": api.run, "events": api.events, "settings": api.settings,
        "rollouts": api.rollouts, "rollout": api.rollout, "call": api.call, "tokens": api.tokens,
        "group": api.group, "compare": api.compare, "eval": api.eval_tasks,
        "playground": api.playground,
    }  # fmt: skip
    return [
        Route("/", _index),
        *(Route(f"/view/{name}", _file) for name in FILES),
        Route("/view/login", access.login, methods=["POST"]),
        *(Route(f"/view/api/{name}", access.guarded(handler)) for name, handler in handlers.items()),
        Route("/view/api/ask/{side}", Ask(access, playground), methods=["POST"]),
    ]


def page_app(library: Library, token: str) -> Starlette:
    """Return the page as an app of its own. It closes the library's stores at its end."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        yield
        await library.close()

    return Starlette(routes=page_routes(library, token), lifespan=lifespan)


async def _index(_: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers={**HEADERS, "cache-control": "no-cache"})


async def _file(request: Request) -> Response:
    return FileResponse(STATIC / request.url.path.rpartition("/")[2], headers={**HEADERS, "cache-control": "no-cache"})


class Api:
    """The JSON behind the views. Every method answers one GET request."""

    def __init__(self, library: Library, playground: Playground | None) -> None:
        self._library, self._summaries, self._playground = library, Summaries(), playground
        self._watching = Watching(library, self._summaries)

    async def runs(self, _: Request) -> Response:
        return answer_json(await asyncio.to_thread(self._summaries.all, self._library))

    async def run(self, request: Request) -> Response:
        return answer_json(await self._watching.now(_name(request)))

    async def events(self, request: Request) -> Response:
        self._library.run(_name(request))
        headers = {**HEADERS, "cache-control": "no-store"}
        return StreamingResponse(self._watching.events(_name(request)), headers=headers, media_type="text/event-stream")

    async def settings(self, request: Request) -> Response:
        return answer_json(await asyncio.to_thread(settings, self._library.run(_name(request))))

    async def rollouts(self, request: Request) -> Response:
        source = await self._library.source(_name(request))
        query = dict(request.query_params)
        return answer_json(await page(source, Filters.parse(query), query.get("cursor", "")))

    async def rollout(self, request: Request) -> Response:
        source = await self._library.source(_name(request))
        return answer_json(detail(source, await read_rollout(source, request.query_params.get("id", ""))))

    async def call(self, request: Request) -> Response:
        source = await self._library.source(_name(request))
        shown = await read_rollout(source, request.query_params.get("id", ""))
        return answer_json(conversation(shown, request.query_params.get("call", "")))

    async def tokens(self, request: Request) -> Response:
        source = await self._library.source(_name(request))
        shown = await read_rollout(source, request.query_params.get("id", ""))
        return answer_json(tokens(source, shown, request.query_params.get("reply", "")))

    async def group(self, request: Request) -> Response:
        return answer_json(await group(await self._library.source(_name(request)), request.query_params.get("group", "")))

    async def compare(self, request: Request) -> Response:
        return answer_json(await compare(self._library, request.query_params.get("a", ""), request.query_params.get("b", "")))

    async def eval_tasks(self, request: Request) -> Response:
        query = request.query_params
        step = int(query.get("step", "")) if query.get("step", "").isdecimal() else 0
        return answer_json(await eval_tasks(self._library, _name(request), step, query.get("kind", "")))

    async def playground(self, request: Request) -> Response:
        return answer_json(await facts(self._library, self._playground, _name(request)))


def _name(request: Request) -> str:
    """The run or store that a request names."""
    return request.query_params.get("source", "")
