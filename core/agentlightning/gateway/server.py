"""The gateway as an ASGI app, and as a server in its own thread, so that a blocking agent cannot stop its own model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypedDict, Unpack

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from agentlightning.contracts.engine import Engine
from agentlightning.contracts.policies import PolicyChoice
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
from agentlightning.gateway.api.prompts import Prompts
from agentlightning.gateway.api.protocol import Form
from agentlightning.gateway.api.rewards import PATH as REWARD_PATH
from agentlightning.gateway.api.rewards import RewardEndpoint
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.app_server import AppServer
from agentlightning.gateway.auth import Callers
from agentlightning.gateway.call import ONE_POLICY, Endpoint, Forwarder, Service
from agentlightning.gateway.end_of_attempt import EndOfAttempt
from agentlightning.gateway.limits import LimitedRequests
from agentlightning.gateway.listener import closes_for_async_clients
from agentlightning.gateway.rendering.demonstration import Demonstrate
from agentlightning.gateway.rendering.load import load_rendering
from agentlightning.gateway.rendering.renderer import Rendering
from agentlightning.gateway.sampled_call import SampledAnswerer
from agentlightning.gateway.traces import TraceEndpoint
from agentlightning.gateway.unknown_path import UnknownPath
from agentlightning.stores.health import health_routes
from agentlightning.telemetry.metrics import Metrics
from agentlightning.telemetry.requests import MeasuredRequests
from agentlightning.types import LLM, Attempt

CALLS_PATH = "/v1/calls"
BASE = "/v1"
OTHER_BASES = ("", "/v1/v1")
"""The beginnings of paths from clients that add no /v1 to their base address, and from those that add one to ours."""


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
    demonstrated_steps: int | None
    """The number of first steps in which it answers. Absent: it answers in all."""
    models: Collection[str]
    """Further names, or patterns, for the model."""
    policies: PolicyChoice
    """Chooses the policy of each call. Absent: there is one policy."""
    prompts: Mapping[str, str]
    """Texts for agents outside a run, by name."""
    max_body: int
    """Bytes of a request's body, at most."""
    metrics: Metrics
    """Measures the requests. Absent: nothing does."""


def gateway_app(store: LightningStore, engine: Engine, **options: Unpack[Options]) -> Starlette:
    """The gateway as an ASGI app, for one event loop. A `Forwarder` gets the requests of agents unchanged."""
    policies = options.get("policies", ONE_POLICY)
    models = (*options.get("models", ()), *policies.names)
    callers, max_body = Callers(store, policy=engine.policy.name, token=options.get("token")), options.get("max_body", MAX_BODY)
    service = Service(store, engine, callers, models, max_body, policies)
    endpoints: dict[str, ASGIApp | Callable[[Request], Awaitable[Response]]]
    if isinstance(engine, Forwarder):
        endpoints = {path: Endpoint(service, answerer) for path, answerer in engine.answerers(service).items()}
    else:
        rendering, demonstrate = _Loader(engine, options.get("rendering")), options.get("demonstrate")
        forms: tuple[Form[Any], ...] = (ChatForm(), ResponsesForm(), CompletionsForm(), MessagesForm())
        steps = options.get("demonstrated_steps")
        endpoints = {form.path: Endpoint(service, SampledAnswerer(service, form, rendering, demonstrate, steps)) for form in forms}
        endpoints[COUNT_PATH] = TokenCounter(service, rendering).count
    endpoints[REWARD_PATH] = RewardEndpoint(store, max_body).answer
    routes = [
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()),
        Route(CALLS_PATH, EndOfAttempt(callers).answer, methods=["DELETE"]),
        *Cards(engine, models, policies.names).routes,
        *Prompts(service, options.get("prompts", {})).routes,
        *TraceEndpoint(store, max_body).routes,
    ]
    unknown = UnknownPath(service, endpoints).answer

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        yield
        if isinstance(engine, Forwarder):
            await engine.disconnect()

    routes = [*routes, *_at_other_bases(routes), *health_routes(store), *options.get("extra_routes", ())]
    measured = [Middleware(MeasuredRequests, options["metrics"], routes)] if "metrics" in options else []
    middleware = [*measured, Middleware(LimitedRequests, unlimited=options.get("token"))]  # a refused request is measured, too
    return Starlette(routes=routes, middleware=middleware, exception_handlers={404: unknown, 405: unknown}, lifespan=lifespan)


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
        self._engine, self._policies = engine, options.get("policies", ONE_POLICY).names
        self._server = AppServer(closes_for_async_clients(gateway_app(store, engine, **options)), host=host, port=port)
        self.start, self.stop = self._server.start, self._server.stop

    @property
    def base_url(self) -> str:
        """The address for agents: `http://host:port/v1`."""
        return f"{self._server.url}/v1"

    def llm(self, attempt: Attempt) -> LLM:
        """Model name, address and key for the agent of an attempt."""
        return LLM(self._engine.info.model, self.base_url, attempt.key, self._policies)
