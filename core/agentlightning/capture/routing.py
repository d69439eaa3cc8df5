"""The destination of a request that an agent's client sends. Pure: it reads values and changes none."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

from agentlightning.capture.forms import ForeignForm
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
    """Of its client, or of its provider."""
    model: object
    """In its body; any value, or None."""
    of_rollout: bool = False
    """True: it belongs to the rollout, whatever model and address it names."""
    foreign: ForeignForm | None = None
    """Its wire form, if the gateway does not speak it."""


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


@dataclass(frozen=True, slots=True)
class Rejected:
    """No address: the request belongs to a rollout, and would leave it."""

    reason: str


Destination: TypeAlias = ToGateway | Unchanged | Rejected


def destination(request: ClientRequest, llm: LLM, models: Collection[str]) -> Destination:
    """The destination of a request in a rollout. The gateway gets requests to its own address, requests of the rollout, and requests for
    its model.

    `models`: further names, or patterns, for the model of the rollout.
    """
    base, target = urlsplit(request.base_url), urlsplit(request.url)
    if not llm.base_url:
        return Unchanged(_host(request), request.model, has_gateway=False)
    at_home = _at_home(request, llm)
    if not (at_home or _belongs(request, llm, models)):
        return Unchanged(_host(request), request.model, has_gateway=True)
    if request.foreign is not None:
        return Rejected(
            f"{request.foreign.name} cannot be recorded, and model {request.model!r} stands for the model of the rollout. "
            f"{request.foreign.instead}, or remove the name from `models`."
        )
    path = _path(target, urlsplit(llm.base_url) if at_home else base) if target.scheme else request.url
    return ToGateway(llm.base_url.rstrip("/") + "/" + DEPLOYMENT.sub("", path).lstrip("/"))


def destination_outside(request: ClientRequest, rollouts: Iterable[LLM], models: Collection[str]) -> Unchanged | Rejected:
    """The destination of a request outside every rollout, while `rollouts` are open. It must not take a rollout's model elsewhere."""
    homes = [llm for llm in rollouts if llm.base_url]
    belongs = request.model is not None and any(_belongs(request, llm, models) for llm in homes)
    if not belongs or any(_at_home(request, llm) for llm in homes):
        return Unchanged(_host(request), request.model, has_gateway=True)
    return Rejected(
        f"Model {request.model!r} stands for the model of the open rollouts, but this call to {_host(request)} is outside every rollout. "
        "Take `rollout = agl.current()` in the rollout, and make the call within `with agl.attach(rollout):`. "
        "If the call belongs to no rollout, use `with agl.attach(None):`."
    )


def _belongs(request: ClientRequest, llm: LLM, models: Collection[str]) -> bool:
    model = request.model
    return request.of_rollout or (isinstance(model, str) and any(fnmatchcase(model, name) for name in (llm.model, *llm.policies, *models)))


def _at_home(request: ClientRequest, llm: LLM) -> bool:
    return _below(_address(request), urlsplit(llm.base_url))


def _address(request: ClientRequest) -> SplitResult:
    target = urlsplit(request.url)
    return target if target.scheme else urlsplit(request.base_url)


def _host(request: ClientRequest) -> str:
    return _address(request).netloc


def _below(url: SplitResult, home: SplitResult) -> bool:
    return _origin(url) == _origin(home) and (url.path.rstrip("/") + "/").startswith(home.path.rstrip("/") + "/")


def _origin(url: SplitResult) -> tuple[str, str, int | None]:
    host = url.hostname or ""
    return url.scheme, "loopback" if host in LOOPBACK else host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _path(url: SplitResult, base: SplitResult) -> str:
    path = url.path.removeprefix(base.path.rstrip("/"))
    return f"{path}?{url.query}" if url.query else path
