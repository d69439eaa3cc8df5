"""A server that is not ours as the model: any that speaks OpenAI's protocol. It takes messages, so no token id ever goes to it.

The upstream's key is read from the environment and sent to the upstream alone; it is in no record and no answer, and what an agent sends as
its own key goes no further than the gateway.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from agentlightning.contracts.engine import Chunk, Engine, EngineInfo, EngineSettings
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.errors import ConfigError, EngineError, UnsupportedSetting
from agentlightning.types import IntArray, Policy, Sampling

UNTRAINABLE = (
    "the weights of an upstream are not ours: no trainer can change them, and it would serve the same ones after every step. Run it with "
    "`agl rollout` or `agl serve`, or train a model that an engine here serves"
)


@dataclass(frozen=True, kw_only=True)
class Settings(EngineSettings):
    """Where the upstream is."""

    url: str
    """As an OpenAI client's base_url: `http://host:8000/v1`."""
    key_env: str | None = None
    """Name of the environment variable that holds its API key; absent: it needs none."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"the upstream's url is {self.url!r}; expected the base_url of an OpenAI-compatible server, http://host:8000/v1"
            )
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                "the upstream's url holds more than an address; put its key into an environment variable, and name it as key_env"
            )
        if self.key_env is not None and not os.environ.get(self.key_env):
            raise ConfigError(f"the upstream's key is expected in the environment variable {self.key_env}, which is not set")


class Upstream(Engine):
    """Stands where an `Engine` stands, for a gateway that forwards what agents ask."""

    Settings = Settings
    remote = True

    def __init__(self, settings: Settings, model: str = "") -> None:
        self.url = settings.url.rstrip("/")
        self.info = EngineInfo(model, "", 0, frozenset())
        self.policy = Policy(version=-1, base=model, uri=f"upstream:{self.url}")
        self._key = os.environ[settings.key_env] if settings.key_env is not None else None
        self._key_env = settings.key_env

    @classmethod
    async def create(cls, model: ModelFiles, settings: Settings, share: Share) -> Upstream:
        """See `hookspecs.register_engines`; `model.name` is the name that the upstream knows."""
        return cls(settings, model.name)

    @property
    def takes_any_model(self) -> bool:
        """Whether agents name the model themselves."""
        return not self.info.model

    @property
    def headers(self) -> dict[str, str]:
        """Sent with every request."""
        return {"content-type": "application/json", **({"authorization": f"Bearer {self._key}"} if self._key else {})}

    @property
    def key_hint(self) -> str:
        """Where to look when the upstream refuses the key."""
        return f"the environment variable {self._key_env}" if self._key_env else "its key_env, which is not set"

    def without_key(self, text: str) -> str:
        """What an upstream says, should it repeat the key."""
        return text.replace(self._key, "***") if self._key else text

    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        """Raises `EngineError`: an upstream takes no token ids."""
        raise EngineError(f"the upstream {self.url} takes messages and no token ids")
        yield

    async def load(self, policy: Policy) -> dict[str, float]:
        """Raises `UnsupportedSetting`."""
        raise UnsupportedSetting(UNTRAINABLE)

    async def pause(self) -> None:
        """There is nothing to hold."""

    async def resume(self) -> None:
        """There is nothing to release."""
