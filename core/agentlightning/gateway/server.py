"""The gateway as an ASGI app, and as a server in its own thread and event loop, so that a blocking agent cannot stop its own model."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from threading import Thread
from typing import Any, TypedDict, Unpack

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from agentlightning.contracts.engine import Engine
from agentlightning.contracts.rendering import RenderingSettings
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import ConfigError, GatewayError
from agentlightning.gateway.api.anthropic_count_tokens import PATH as COUNT_PATH
from agentlightning.gateway.api.anthropic_count_tokens import TokenCounter
from agentlightning.gateway.api.anthropic_messages import MessagesForm
from agentlightning.gateway.api.body import MAX_BODY
from agentlightning.gateway.api.cards import Cards
from agentlightning.gateway.api.openai_chat import ChatForm
from agentlightning.gateway.api.openai_completions import CompletionsForm
from agentlightning.gateway.api.openai_responses import ResponsesForm
from agentlightning.gateway.api.protocol import Form
from agentlightning.gateway.api.rewards import PATH as REWARD_PATH
from agentlightning.gateway.api.rewards import RewardEndpoint
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.auth import Callers
from agentlightning.gateway.call import Endpoint, Forwarder, Service
from agentlightning.gateway.end_of_attempt import EndOfAttempt
from agentlightning.gateway.listener import TimedProtocol, closes_for_async_clients, is_loopback, listen, local_names_only
from agentlightning.gateway.rendering.demonstration import Demonstrate
from agentlightning.gateway.rendering.load import load_rendering
from agentlightning.gateway.rendering.renderer import Rendering
from agentlightning.gateway.sampled_call import SampledAnswerer
from agentlightning.gateway.traces import TraceEndpoint
from agentlightning.gateway.unknown_path import UnknownPath
from agentlightning.types import LLM, Attempt

CALLS_PATH = "/v1/calls"
BASE = "/v1"
OTHER_BASES = ("", "/v1/v1")
"""The beginnings of paths from clients that add no /v1 to their base address, and from those that add one to ours."""
SHUTDOWN = 5
"""Seconds for in-flight calls when the server stops. Then they are cancelled and recorded as such."""
RECORDING = 5
"""Seconds for a slow store to record them."""
KEEP_ALIVE = 75
"""Seconds that an idle connection stays open. No client keeps one longer."""


class _Loader:
    """Loads the rendering at the first request, once, in a thread."""

    def __init__(self, engine: Engine, settings: RenderingSettings | None) -> None:
        self._engine, self._settings = engine, settings
        self._task: asyncio.Task[Rendering] | None = None

    async def __call__(self) -> Rendering:
        if self._task is None or (self._task.done() and (self._task.cancelled() or self._task.exception() is not None)):
            work = asyncio.to_thread(load_rendering, self._engine.info, self._settings)
            self._task = asyncio.create_task(work)
        try:
            return await asyncio.shield(self._task)
        except (ConfigError, GatewayError) as error:  # nothing that a client repeats can change it
            raise Refused(str(error), code="renderer") from error


class Options(TypedDict, total=False):
    """Settings of a gateway."""

    rendering: RenderingSettings | None
    """How messages become tokens. Absent: as the model's folder says, else the defaults."""
    extra_routes: Sequence[BaseRoute]
    token: str | None
    """Calls with this API key and no attempt are production. Each becomes a rollout of its own, sampled as it asks."""
    demonstrate: Demonstrate | None
    """Answers the calls of training rollouts in place of the engine."""
    models: Collection[str]
    """Further names, or patterns, for the model."""
    max_body: int
    """Bytes of a request's body, at most."""


def gateway_app(store: LightningStore, engine: Engine, **options: Unpack[Options]) -> Starlette:
    """The gateway as an ASGI app, for one event loop. A `Forwarder` gets the requests of agents unchanged."""
    models = options.get("models", ())
    callers, max_body = Callers(store, policy=engine.policy.name, token=options.get("token")), options.get("max_body", MAX_BODY)
    service = Service(store, engine, callers, models, max_body)
    endpoints: dict[str, ASGIApp | Callable[[Request], Awaitable[Response]]]
    if isinstance(engine, Forwarder):
        endpoints = {path: Endpoint(service, answerer) for path, answerer in engine.answerers(service).items()}
    else:
        rendering, demonstrate = _Loader(engine, options.get("rendering")), options.get("demonstrate")
        forms: tuple[Form[Any], ...] = (ChatForm(), ResponsesForm(), CompletionsForm(), MessagesForm())
        endpoints = {form.path: Endpoint(service, SampledAnswerer(service, form, rendering, demonstrate)) for form in forms}
        endpoints[COUNT_PATH] = TokenCounter(service, rendering).count
    endpoints[REWARD_PATH] = RewardEndpoint(store, max_body).answer
    routes = [
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()),
        Route(CALLS_PATH, EndOfAttempt(callers).answer, methods=["DELETE"]),
        *Cards(engine, models).routes,
        *TraceEndpoint(store, max_body).routes,
    ]
    unknown = UnknownPath(service, endpoints).answer

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        yield
        if isinstance(engine, Forwarder):
            await engine.disconnect()

    routes = [*routes, *_at_other_bases(routes), *options.get("extra_routes", ())]
    return Starlette(routes=routes, exception_handlers={404: unknown, 405: unknown}, lifespan=lifespan)


def _at_other_bases(routes: Sequence[Route]) -> list[Route]:
    """The same routes for clients whose base address should have no /v1, or should have one."""
    return [
        Route(base + route.path.removeprefix(BASE), route.endpoint, methods=list(route.methods or ()))
        for base in OTHER_BASES
        for route in routes
        if route.path.startswith(BASE)
    ]


class Gateway:
    """Serves an engine to agents and records their calls in a store. Port 0 takes a free one."""

    def __init__(
        self, store: LightningStore, engine: Engine, *, host: str = "127.0.0.1", port: int = 0, **options: Unpack[Options]
    ) -> None:
        self._app = gateway_app(store, engine, **options)
        self._engine, self._host, self._port = engine, host, port
        self._server: uvicorn.Server | None = None
        self._thread: Thread | None = None

    async def start(self) -> None:
        """Listen and serve. Raises `GatewayError` when the address is not free."""
        if self._server is not None:
            raise GatewayError("The gateway is already running. Stop it first.")
        listener = listen(self._host, self._port)
        self._port = listener.getsockname()[1]
        app = closes_for_async_clients(self._app)
        config = uvicorn.Config(
            local_names_only(app) if is_loopback(self._host) else app,
            http=TimedProtocol,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            lifespan="on",
            ws="none",
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=SHUTDOWN,
        )
        server = self._server = uvicorn.Server(config)
        self._thread = Thread(target=_serve, args=(server, listener), name="agentlightning-gateway", daemon=True)
        self._thread.start()
        while not server.started:
            if not self._thread.is_alive():
                self._server = None
                raise GatewayError(f"The gateway on {self._host}:{self._port} stopped during its start. See the log.")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Stop listening. In-flight calls have a few seconds to end. Idempotent."""
        server, thread, self._server = self._server, self._thread, None
        if server is None or thread is None:
            return
        server.should_exit = True
        await asyncio.to_thread(thread.join)

    @property
    def base_url(self) -> str:
        """The address for agents: `http://host:port/v1`."""
        if self._server is None:
            raise GatewayError("The gateway has no address yet. Start it first.")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104 (compared, not listened on)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}/v1"

    def llm(self, attempt: Attempt) -> LLM:
        """Model name, address and key for the agent of an attempt."""
        return LLM(self._engine.info.model, self.base_url, attempt.key)


def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    try:
        asyncio.run(_serve_and_record(server, listener))
    finally:
        listener.close()


async def _serve_and_record(server: uvicorn.Server, listener: socket.socket) -> None:
    await server.serve(sockets=[listener])
    # the end of the loop would cut off the records of the calls that it cancelled
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=RECORDING)
