"""The engine `upstream`: another OpenAI-compatible server as the model.

It takes messages, so it receives no token ids. The upstream's key comes from the environment and goes only to the upstream. The agent's own
key stays in the gateway.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.engine import Chunk, EngineInfo, EngineSettings
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.errors import ConfigError, EngineError, UnsupportedSetting
from agentlightning.gateway.call import Answerer, Forwarder, Service
from agentlightning.types import Doubles, IntArray, Policy, Sampling
from agentlightning_upstream.chat import answer
from agentlightning_upstream.connection import Connection
from agentlightning_upstream.forward import FORMS, ForwardAnswerer
from agentlightning_upstream.prompt_logprobs import score, tokenize


@dataclass(frozen=True, kw_only=True)
class UpstreamSettings(EngineSettings):
    """Address of the upstream."""

    url: str
    """Base URL, as in an OpenAI client: `http://host:8000/v1`."""
    key_env: str | None = None
    """Environment variable with its API key. Leave it out for a server without keys."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"The upstream's url is {self.url!r}. Set it to the base_url of an OpenAI-compatible server, such as http://host:8000/v1."
            )
        if parts.username or parts.password or parts.query:
            raise ConfigError("The upstream's url holds more than an address. Put the key into an environment variable, and set key_env.")
        if self.key_env is not None and not os.environ.get(self.key_env):
            raise ConfigError(f"key_env names the environment variable {self.key_env}, which is not set. Set it to the upstream's key.")


class Upstream(Forwarder):
    """Forwards requests. Has no weights."""

    Settings = UpstreamSettings
    remote = True
    scores = True
    answers = True

    def __init__(self, settings: UpstreamSettings, model: str = "") -> None:
        url = settings.url.rstrip("/")
        self.info = EngineInfo(model, "", 0, frozenset())
        """Create an engine. With an empty model name, agents choose the model themselves."""
        self.policy = Policy(version=-1, base=model, uri=f"upstream:{url}")
        self._connection = Connection(url, os.environ[settings.key_env] if settings.key_env is not None else None, settings.key_env)

    @classmethod
    async def create(cls, model: ModelFiles, settings: UpstreamSettings, share: Share) -> Upstream:
        """See `hookspecs.register_engines`. `model.name` is the upstream's name for the model."""
        return cls(settings, model.name)

    def answerers(self, service: Service) -> Mapping[str, Answerer]:
        """See `Forwarder.answerers`."""
        return {path: ForwardAnswerer(service, self._connection, path) for path in FORMS}

    async def disconnect(self) -> None:
        """See `Forwarder.disconnect`."""
        await self._connection.close()

    async def score(self, batch: Batch) -> Doubles:
        """See `Engine.score`. The upstream must be a vLLM server."""
        return await score(self._connection, self.info.model, batch)

    async def tokenize(self, text: str) -> list[int]:
        """See `Engine.tokenize`."""
        return await tokenize(self._connection, self.info.model, text)

    async def answer(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
        """See `Engine.answer`."""
        return await answer(self._connection, {"model": self.info.model, "messages": messages, "tools": tools, **settings})

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._connection.close()

    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        """Raise `EngineError`, because an upstream takes no token ids."""
        raise EngineError(f"The upstream {self._connection.url} takes messages, not token ids. Send requests through the gateway.")
        yield

    async def load(self, policy: Policy) -> dict[str, float]:
        """Raise `UnsupportedSetting`, because an upstream's weights cannot be changed from here."""
        raise UnsupportedSetting("The weights of an upstream are on another server, and no trainer can change them. Use another engine.")

    async def pause(self) -> None:
        """Do nothing. The upstream needs no pause."""

    async def resume(self) -> None:
        """Do nothing. See `pause`."""
