"""Limits for the clients of a server: open connections of all together, requests of one key. Official clients try again by themselves.

A request over a limit is answered before its body is read. No call is recorded for it, because the records would be the flood.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from agentlightning.gateway.api.answers import json_response
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.auth import keys_of
from agentlightning.stores.common import ATTEMPT_KEY
from agentlightning.stores.http_client import PREFIX

RATE, BURST = 200.0, 2000.0
"""Requests of one key: for each second in the long run, and at once."""
RUNNING = 256
"""Requests of one key that run at the same time, at most."""
KEYS = 4096
"""Keys whose rate is remembered. The longest idle ones leave first."""
RESERVED, MOST = 256, 8192
"""Open files that a server's connections leave to the rest of the process, and connections at most."""
FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
"""The answer to a connection too many."""

log = logging.getLogger("agentlightning.gateway")


@cache
def most_connections() -> int:
    """Open connections of one server, at most. A process without free files could not write its store."""
    import resource  # POSIX

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MOST + RESERVED if soft == resource.RLIM_INFINITY else soft
    return max(16, min(MOST, files - RESERVED))


@dataclass(slots=True)
class _Use:
    """The requests of one key."""

    left: float
    """Requests that it may send now."""
    since: float
    running: int = 0
    warned: bool = False

    def admits(self, now: float) -> bool:
        self.left = min(BURST, self.left + (now - self.since) * RATE)
        self.since = now
        if self.left < 1 or self.running >= RUNNING:
            return False
        self.left -= 1
        return True


class LimitedRequests:
    """The app, with a limit for each key in its POST requests. `DELETE` stays free: it ends calls. A store's clients share one key, and
    have no limit."""

    def __init__(self, app: ASGIApp, unlimited: str | None = None) -> None:
        """`unlimited`: the key of many clients, which has no limit."""
        self._app, self._unlimited = app, unlimited
        self._uses: OrderedDict[str, _Use] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limited = scope["type"] == "http" and scope["method"] == "POST" and not scope["path"].startswith(PREFIX)
        uses = [self._use(key) for key in _counted(keys_of(Headers(scope=scope)))] if limited else []
        if not uses or any(self._is_unlimited(key) for key in keys_of(Headers(scope=scope))):
            await self._app(scope, receive, send)
            return
        now = time.monotonic()
        full = [use for use in uses if not use.admits(now)]
        if full:
            await _too_many(full[0])(scope, receive, send)
            return
        for use in uses:
            use.running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            for use in uses:
                use.running -= 1

    def _is_unlimited(self, key: str) -> bool:
        return self._unlimited is not None and hmac.compare_digest(key.encode(), self._unlimited.encode())

    def _use(self, key: str) -> _Use:
        use = self._uses.get(key)
        if use is None:
            use = self._uses[key] = _Use(BURST, time.monotonic())
            if len(self._uses) > KEYS:
                self._uses.popitem(last=False)
        self._uses.move_to_end(key)
        return use


def _counted(keys: Sequence[str]) -> list[str]:
    """The keys of a request that its attempt may have; the first one where none looks like an attempt's.

    Clients without a key of their own send a placeholder beside the attempt's key, the same one in every attempt.
    """
    return list(dict.fromkeys(key for key in keys if key.startswith(ATTEMPT_KEY))) or list(keys[:1])


def _too_many(use: _Use) -> ASGIApp:
    if not use.warned:
        use.warned = True
        log.warning("An attempt sent too many requests, so the gateway refuses some of them. (This warning appears once for each attempt.)")
    text = f"This key has {RUNNING} requests running, or sent more than {RATE:g} a second. Wait a second, then try again."
    answer = json_response(Refused(text, status=429, code="rate_limit_exceeded", type="rate_limit_error").body, 429)
    answer.headers["retry-after"] = "1"
    return answer
