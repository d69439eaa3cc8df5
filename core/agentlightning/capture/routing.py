"""The destination of a request that the `openai` library sends during a rollout. Pure: it reads values and changes none."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

from agentlightning.types import LLM

LOOPBACK = ("localhost", "127.0.0.1", "::1")
DEPLOYMENT = re.compile(r"^/?deployments/[^/]+(?=/)")
"""The model in the paths of Azure's clients."""


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """One request before it leaves."""

    url: str
    """A path below `base_url`, or a whole address."""
    base_url: str
    """Of its client."""
    model: object
    """In its body; any value, or None."""
    of_rollout: bool = False
    """True: it belongs to the rollout, whatever model and address it names."""


@dataclass(frozen=True, slots=True)
class ToGateway:
    """The rollout's gateway."""

    url: str


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Its own address."""

    host: str
    model: object
    has_gateway: bool
    """False: the rollout has no gateway."""

    def reason(self, adapter: str) -> str:
        """The reason why the span of this call names no recorded call, with the way out. `adapter`: its import name."""
        if not self.has_gateway:
            return "the rollout has no gateway; give agl.rollout its address (`gateway`, or AGL_GATEWAY) to record tokens as well"
        return (
            f"another address: the request went to {self.host} for model {self.model!r}, not to the rollout's gateway; if that model "
            f"stands for the one in training: {adapter}.install(models=[{self.model!r}])"
        )


Destination: TypeAlias = ToGateway | Unchanged


def destination(request: ClientRequest, llm: LLM, models: Collection[str]) -> Destination:
    """The destination of a request. The gateway gets requests to its own address, requests of the rollout, and requests for its model.

    `models`: further names, or patterns, for the model of the rollout.
    """
    home, base, target = urlsplit(llm.base_url), urlsplit(request.base_url), urlsplit(request.url)
    address = target if target.scheme else base
    if not llm.base_url:
        return Unchanged(address.netloc, request.model, has_gateway=False)
    at_home, model = _below(address, home), request.model
    named = isinstance(model, str) and any(fnmatchcase(model, name) for name in (llm.model, *models))
    if not (at_home or request.of_rollout or named):
        return Unchanged(address.netloc, model, has_gateway=True)
    path = _path(target, home if at_home else base) if target.scheme else request.url
    return ToGateway(llm.base_url.rstrip("/") + "/" + DEPLOYMENT.sub("", path).lstrip("/"))


def _below(url: SplitResult, home: SplitResult) -> bool:
    return _origin(url) == _origin(home) and (url.path.rstrip("/") + "/").startswith(home.path.rstrip("/") + "/")


def _origin(url: SplitResult) -> tuple[str, str, int | None]:
    host = url.hostname or ""
    return url.scheme, "loopback" if host in LOOPBACK else host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _path(url: SplitResult, base: SplitResult) -> str:
    path = url.path.removeprefix(base.path.rstrip("/"))
    return f"{path}?{url.query}" if url.query else path
