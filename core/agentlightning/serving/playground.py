"""Lets the page ask the served policy, and its model before training beside it.

Both answer through a gateway, like any agent's call. The records go to a store in memory and are deleted when the call ends, so no run
ever trains on a question of the playground.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias, get_args

from starlette.types import ASGIApp, Receive, Scope, Send

from agentlightning.contracts.engine import Engine
from agentlightning.contracts.rendering import RenderingSettings
from agentlightning.errors import ConfigError, LightningError
from agentlightning.gateway import gateway_app
from agentlightning.gateway.api.answers import encode, send_json
from agentlightning.gateway.api.schema import Refused
from agentlightning.stores.common import ENDED, open_store

PATH = "/v1/chat/completions"
Side = Literal["policy", "base"]
SIDES: tuple[Side, ...] = get_args(Side)


OpenBase: TypeAlias = Callable[[], Awaitable[tuple[Engine, RenderingSettings]]]
"""Loads the model before training. Raises `LightningError` if that fails."""


class Playground:
    """Answers chat completions of one side as an ASGI app, within the event loop of the page."""

    def __init__(self, engine: Engine, rendering: RenderingSettings, base: OpenBase | None, *, weights: str = "") -> None:
        """`base`: None if there is no other model. `weights`: the step of the served weights, and why this one."""
        self.engine, self.weights = engine, weights
        self._open_base = base
        self._key, self._store = secrets.token_urlsafe(24), open_store("memory:")
        self._apps: dict[Side, ASGIApp] = {"policy": self._app(engine, rendering)}
        self._base: Engine | None = None
        self._loading = asyncio.Lock()

    @property
    def has_base(self) -> bool:
        """Whether the served weights were trained from another model."""
        return self._open_base is not None

    @property
    def base_is_loaded(self) -> bool:
        """Whether the model before training is in memory."""
        return self._base is not None

    async def ask(self, side: Side, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a chat completion. The first question to the base model loads it. An error has OpenAI's form."""
        try:
            app = await self._app_of(side)
        except LightningError as error:
            refusal = Refused(f"The model before training is not loaded. {error}", status=503, type="server_error")
            await send_json(send, refusal.status, encode(refusal.body))
            return
        headers = [(b"authorization", f"Bearer {self._key}".encode()), (b"content-type", b"application/json")]
        lengths = [(name, value) for name, value in scope["headers"] if name in (b"content-length", b"transfer-encoding")]
        inner = {**scope, "path": PATH, "raw_path": PATH.encode(), "root_path": "", "headers": [*headers, *lengths]}
        try:
            await app(inner, receive, send)
        finally:
            await self._forget()

    async def close(self) -> None:
        """Release the base model and the records."""
        if self._base is not None:
            await self._base.close()
        await self._store.close()

    def _app(self, engine: Engine, rendering: RenderingSettings) -> ASGIApp:
        return gateway_app(self._store, engine, token=self._key, rendering=rendering)

    async def _app_of(self, side: Side) -> ASGIApp:
        if side in self._apps:
            return self._apps[side]
        async with self._loading:
            if side not in self._apps:
                if self._open_base is None:
                    raise ConfigError("This server has no other model. Ask the policy.")
                self._base, rendering = await self._open_base()
                self._apps[side] = self._app(self._base, rendering)
        return self._apps[side]

    async def _forget(self) -> None:
        """Delete the records of ended calls."""
        states, _ = await self._store.list(status=ENDED)
        await self._store.delete([state.rollout.id for state in states])
