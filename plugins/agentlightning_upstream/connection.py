"""The connection to an upstream: sends requests with as many extra fields as the upstream accepts, and reads its errors.

The upstream's key stays here. No record and no answer contains it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Literal, cast

import httpx

from agentlightning.capture.http_patch import OWN_CLIENT
from agentlightning.capture.recorder import CALL_HEADER
from agentlightning.gateway.api.answers import encode
from agentlightning.gateway.api.schema import Refused
from agentlightning_upstream.replies import Fields
from agentlightning_upstream.request import Planned
from agentlightning_upstream.wire import json_object

TIMEOUT = httpx.Timeout(600.0, connect=10.0)
"""Timeout in seconds, like OpenAI's own client."""
NOT_THE_REQUESTS = (401, 403, 408, 425, 429)
"""Statuses below 500 that are not the agent's fault: the upstream rejects the gateway's key, or is busy."""


class UpstreamRefused(Refused):
    """An upstream's error, in its own words."""

    def __init__(self, message: str, status: int, fields: Fields) -> None:
        super().__init__(message, status=status)
        self._fields = fields

    @property
    def call_status(self) -> Literal["refused", "error"]:
        return "error" if self.status in NOT_THE_REQUESTS else super().call_status

    @property
    def body(self) -> Fields:
        return self._fields


class Connection:
    """Belongs to one event loop, starting with its first request."""

    def __init__(self, url: str, key: str | None, key_env: str | None) -> None:
        self.url = url
        self._key, self._key_env = key, key_env
        self._levels: dict[tuple[object, ...], int] = {}  # the highest accepted level, by kind of request
        self._client: httpx.AsyncClient | None = None

    async def send(self, path: str, plan: Planned, call_id: str, warn_once: Callable[..., None]) -> tuple[httpx.Response, int]:
        """Send a request. Return the response with its body unread, and the plan level it answers. Raises `Refused`."""
        kind = (path, plan.body.get("model"), bool(plan.body.get("stream")), bool(plan.body.get("tools")), len(plan.levels))
        first = self._levels.get(kind)
        for level in range(first or 0, len(plan.levels)):
            extra = plan.levels[level]
            request = self._opened().build_request(
                "POST", self.url + path.removeprefix("/v1"), content=encode({**plan.body, **extra}), headers=self._headers(call_id)
            )
            response = await self._opened().send(request, stream=True)
            if response.status_code == 200:
                self._levels.setdefault(kind, level)
                if level:
                    unsupported = sorted(set(plan.levels[0]) - set(extra))
                    warn_once("levels", "The upstream %s does not accept %s.", self.url, ", ".join(unsupported))
                return response, level
            async with aclosing(response):
                refusal = self._refusal(response, await response.aread())
            if first is not None or response.status_code not in (400, 422) or not extra:
                raise refusal
        raise AssertionError("the last level adds nothing")  # and ended the loop

    async def post(self, url: str, body: Fields) -> httpx.Response:
        """Send a request of our own, of no call of an agent. Raises `httpx.HTTPError`."""
        own = {"content-type": "application/json", **({"authorization": f"Bearer {self._key}"} if self._key else {})}
        return await self._opened().post(url, content=encode(body), headers=own)

    def unreachable(self, error: httpx.HTTPError) -> Refused:
        """Return the error of a failed connection."""
        if isinstance(error, httpx.TimeoutException):
            text, status, code = "did not answer in time", 504, "upstream_timeout"
        else:
            text, status, code = "cannot be reached, or broke off", 502, "upstream_unreachable"
        reason = type(error).__name__ + (f": {error}" if str(error) else "")
        return Refused(f"The upstream {self.url} {text} ({reason}).", status=status, type="server_error", code=code)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
            self._client = httpx.AsyncClient(timeout=TIMEOUT, limits=limits)
            setattr(self._client, OWN_CLIENT, True)
        return self._client

    def _headers(self, call_id: str) -> dict[str, str]:
        """Return the headers. If the upstream is a gateway too, it takes over the call id."""
        own = {"content-type": "application/json", CALL_HEADER: call_id}
        return {**own, **({"authorization": f"Bearer {self._key}"} if self._key else {})}

    def without_key(self, data: bytes) -> bytes:
        """Remove the key from the data. Some upstreams repeat it in errors."""
        return data.replace(self._key.encode(), b"***") if self._key else data

    def _refusal(self, response: httpx.Response, data: bytes) -> Refused:
        """Return the upstream's error in OpenAI's format, without its key."""
        status, text = response.status_code, self.without_key(data).decode(errors="replace")
        fields = json_object(text.encode())
        raw: Any = (fields or {}).get("error")
        details = cast(Fields, raw) if isinstance(raw, dict) else None
        message = text[:500] if details is None else str(details.get("message"))
        message = f"The upstream {self.url} answered {status}: {message}"
        if status in (401, 403):
            variable = f"the environment variable {self._key_env}" if self._key_env else "the setting key_env, which is missing"
            message += f" It refuses the gateway's key. Check {variable}."
        if status < 400:
            status, fields = 502, None
        if details is None:
            details = {"type": "invalid_request_error" if status < 500 else "server_error", "param": None, "code": None}
        refusal = UpstreamRefused(message, status, {**(fields or {}), "error": {**details, "message": message}})
        if "retry-after" in response.headers:
            refusal.headers.append((b"retry-after", response.headers["retry-after"].encode("latin-1", "replace")))
        return refusal
