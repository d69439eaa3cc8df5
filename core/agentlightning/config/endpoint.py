"""The settings of another model's OpenAI-compatible endpoint: a judge, or the model that reflects on prompts."""

from __future__ import annotations

import os
from dataclasses import dataclass

from agentlightning.errors import ConfigError
from agentlightning.settings import BaseSettings, NonNegativeInt, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class EndpointSettings(BaseSettings):
    """An OpenAI-compatible endpoint."""

    base_url: str
    """Address of an OpenAI-compatible endpoint. Requests go to `/chat/completions` below it."""
    model: str
    """The model, as the endpoint names it."""
    api_key_env: str | None = None
    """The environment variable with the endpoint's key. Absent: no key is sent. The key itself is never stored."""
    timeout: PositiveFloat = 60.0
    """Seconds for one request."""
    retries: NonNegativeInt = 5
    """More requests after a failed one, or after a reply that cannot be read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"{self.table}.base_url is {self.base_url!r}. Use an HTTP address, such as http://127.0.0.1:8000/v1.")
        if "@" in self.base_url.partition("://")[2].partition("/")[0]:
            raise ConfigError(
                f"{self.table}.base_url has a login in it, and the run folder keeps its settings. Remove it, and name an environment "
                "variable in api_key_env."
            )

    def key(self) -> str | None:
        """Return the endpoint's key. Raises `ConfigError` if its environment variable is not set."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env)
        if not key:
            raise ConfigError(f"{self.table}.api_key_env names {self.api_key_env!r}, which is not set. Set it to the key of the endpoint.")
        return key


@dataclass(frozen=True, kw_only=True)
class ReflectionSettings(EndpointSettings):
    """The model that reads recorded rollouts and proposes prompts."""

    table = "algorithm.reflection"
    timeout: PositiveFloat = 300.0
    """Seconds for one request."""
