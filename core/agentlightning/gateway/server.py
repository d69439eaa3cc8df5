"""The gateway as an ASGI app, and as a server in a thread and event loop of its own: an agent that blocks cannot stop its own model."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from errno import EADDRINUSE
from functools import partial
from threading import Thread

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentlightning.contracts.engine import Engine
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import GatewayError
from agentlightning.gateway.api.answers import encode
from agentlightning.gateway.api.anthropic_count_tokens import PATH as COUNT_PATH
from agentlightning.gateway.api.anthropic_count_tokens import TokenCounter
from agentlightning.gateway.api.anthropic_messages import MessagesForm
from agentlightning.gateway.api.openai_chat import ChatForm
from agentlightning.gateway.api.openai_completions import CompletionsForm
from agentlightning.gateway.api.openai_responses import ResponsesForm
from agentlightning.gateway.api.protocol import Form
from agentlightning.gateway.api.rewards import PATH, RewardEndpoint
from agentlightning.gateway.api.schema import Refused, check_model
from agentlightning.gateway.auth import Callers
from agentlightning.gateway.call import Endpoint
from agentlightning.gateway.rendering.demonstration import Demonstrate
from agentlightning.gateway.rendering.renderer import Rendering, load_rendering
from agentlightning.gateway.sampled_call import Sampled, SamplingService
from agentlightning.gateway.upstream.engine import Upstream
from agentlightning.gateway.upstream.forward import PATHS as FORWARDED
from agentlightning.gateway.upstream.forward import Forward, ForwardService
from agentlightning.types import LLM, Attempt

SHUTDOWN = 5
"""Seconds that calls under way have when the server stops; then they are cancelled, and recorded so."""
RECORDING = 5
"""Seconds that a slow store has for that."""
KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than any client keeps one."""


class _Loader:
    """Loads the rendering at the first request, once, in a thread."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self._name = engine, name
        self._task: asyncio.Task[Rendering] | None = None

    async def __call__(self) -> Rendering:
        if self._task is None or (self._task.done() and (self._task.cancelled() or self._task.exception() is not None)):
            work = asyncio.to_thread(load_rendering, self._engine.info, self._engine.policy.base, self._name)
            self._task = asyncio.create_task(work)
        return await asyncio.shield(self._task)


def gateway_app(
    store: LightningStore,
    engine: Engine,
    *,
    renderer: str = "auto",
    extra_routes: Sequence[BaseRoute] = (),
    token: str | None = None,
    demonstrate: Demonstrate | None = None,
    models: Collection[str] = (),
) -> Starlette:
    """The gateway as an ASGI app, for one event loop.

    `renderer`: `auto`, or the name of one (registered, or of the `renderers` library). `token`: calls with this API key and no attempt
    are production: each becomes a rollout of its own, sampled as it asks. `demonstrate`: answers the calls of training rollouts in place of
    the engine. `models`: names, or patterns, by which agents may ask for the model besides its own. An engine that is an `Upstream` gets
    the requests of agents as they are.
    """
    callers = Callers(store, policy=engine.policy.name, token=token)
    created = int(time.time())

    def card() -> dict[str, object]:
        return {"id": engine.info.model, "object": "model", "created": created, "owned_by": "agentlightning"}

    async def cards(request: Request) -> Response:
        return _json({"object": "list", "data": [card()] if engine.info.model else []})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        try:
            check_model(name, engine.info.model, engine.policy.name, models)
        except Refused as refusal:
            return _json(refusal.body, refusal.status)
        return _json({**card(), "id": name})

    async def healthz(request: Request) -> Response:
        policy = engine.policy
        return _json({"status": "ok", "model": engine.info.model, "policy": policy.name, "version": policy.version})

    async def unknown(request: Request, error: Exception) -> Response:
        status: int = getattr(error, "status_code", 404)
        message = f"{request.method} {request.url.path} is not served; this gateway serves {served}"
        return _json(Refused(message, code="unknown_url").body, status)

    forms: tuple[Form, ...] = (ChatForm(), ResponsesForm(), CompletionsForm(), MessagesForm())
    forwarding = ForwardService(store, engine, callers, models) if isinstance(engine, Upstream) else None
    if forwarding is not None:
        endpoints, counters = {path: Endpoint(forwarding, ChatForm().error, partial(Forward, forwarding, path)) for path in FORWARDED}, {}
    else:
        service = SamplingService(store, engine, callers, _Loader(engine, renderer), demonstrate, models)
        endpoints = {form.path: Endpoint(service, form.error, partial(Sampled, service, form)) for form in forms}
        counters = {COUNT_PATH: TokenCounter(service).count}
    served = f"POST {', '.join([*endpoints, *counters, PATH])} and GET /v1/models"
    routes: list[BaseRoute] = [
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()),
        Route(PATH, RewardEndpoint(store).answer, methods=["POST"]),
        *(Route(path, counter, methods=["POST"]) for path, counter in counters.items()),
        Route("/v1/models", cards),
        Route("/v1/models/{name:path}", model),
        Route("/healthz", healthz),
        *extra_routes,
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        yield
        if forwarding is not None:
            await forwarding.close()

    return Starlette(routes=routes, exception_handlers={404: unknown, 405: unknown}, lifespan=lifespan)


def _json(value: object, status: int = 200) -> Response:
    return Response(encode(value), status, media_type="application/json")


class Gateway:
    """Serves an engine to agents, and records into a store what they ask and get. See `gateway_app` for the settings.

    `port` 0 takes a free one.
    """

    def __init__(
        self,
        store: LightningStore,
        engine: Engine,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        renderer: str = "auto",
        extra_routes: Sequence[BaseRoute] = (),
        token: str | None = None,
        demonstrate: Demonstrate | None = None,
        models: Collection[str] = (),
    ) -> None:
        self._app = gateway_app(
            store, engine, renderer=renderer, extra_routes=extra_routes, token=token, demonstrate=demonstrate, models=models
        )
        self._engine, self._host, self._port = engine, host, port
        self._server: uvicorn.Server | None = None
        self._thread: Thread | None = None

    async def start(self) -> None:
        """Listen and serve. Raises `GatewayError` when the address cannot be had."""
        if self._server is not None:
            raise GatewayError("the gateway is started already")
        listener = _listen(self._host, self._port)
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
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
                raise GatewayError(f"the gateway on {self._host}:{self._port} ended before it served; see the log")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Stop listening; calls under way have a few seconds to end. Idempotent."""
        server, thread, self._server = self._server, self._thread, None
        if server is None or thread is None:
            return
        server.should_exit = True
        await asyncio.to_thread(thread.join)

    @property
    def base_url(self) -> str:
        """Where agents find it: `http://host:port/v1`."""
        if self._server is None:
            raise GatewayError("the gateway has no address yet; start it first")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104 (compared, not listened on)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}/v1"

    def llm(self, attempt: Attempt) -> LLM:
        """What the agent of this attempt needs to reach its model."""
        return LLM(self._engine.info.model, self.base_url, attempt.key)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with the protocol named: asyncio turns Nagle's delay (40 ms an answer) off only where it sees TCP
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        way_out = f"; another program may use port {port}: choose another, or 0 for a free one" if error.errno == EADDRINUSE else ""
        raise GatewayError(f"the gateway cannot listen on {host}:{port}: {error.strerror or error}{way_out}") from error
    return listener


def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    try:
        asyncio.run(_serve_and_record(server, listener))
    finally:
        listener.close()


async def _serve_and_record(server: uvicorn.Server, listener: socket.socket) -> None:
    await server.serve(sockets=[listener])
    # the calls that it cancelled are being recorded, which the end of the loop would cut off
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=RECORDING)
