"""Who may see the page. A link carries the token in its fragment, which no server and no log ever sees. The page sends it once and gets a
cookie that scripts cannot read.

The cookie is derived from the token, so a server with the same `AGL_TOKEN` knows it after a restart. Its name is, too, because all ports of
a machine share their cookies.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from agentlightning.errors import ConfigError, LightningError, NotFound, UnknownRun

Handler = Callable[[Request], Awaitable[Response]]
HEADERS: Mapping[str, str] = {
    "content-security-policy": ("default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Of every answer. Scripts and styles come from the page's own files alone, so text of a model never runs."""
LONGEST_LOGIN = 4096
"""Bytes of a login."""


class Access:
    """Lets in the browsers that have the token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._pass = hmac.new(self._token, b"agl view", hashlib.sha256).hexdigest()
        self._cookie = f"agl-{hashlib.sha256(self._token).hexdigest()[:8]}"

    def admits(self, request: Request) -> bool:
        """Whether a request comes from the page itself, and with its cookie or the token."""
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return False
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        by_cookie = _equal(request.cookies.get(self._cookie, ""), self._pass)
        return by_cookie or (scheme.lower() == "bearer" and _equal(bearer.strip(), self._token.decode()))

    async def login(self, request: Request) -> Response:
        """Answer the token with the cookie."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LONGEST_LOGIN:
                return failure(413, "This is too long for a token.")
        if not _equal(body.decode("utf-8", "replace").strip(), self._token.decode()):
            return failure(401, "This token is wrong. Open the link that the running `agl view` or `agl serve` printed last.")
        answer = Response(status_code=204, headers=dict(HEADERS))
        answer.set_cookie(self._cookie, self._pass, path="/view", httponly=True, samesite="strict")
        return answer

    def guarded(self, handler: Handler) -> Handler:
        """The handler for requests with the cookie. An error of ours becomes an answer."""

        async def guarded_handler(request: Request) -> Response:
            if not self.admits(request):
                return failure(401, "You are not signed in. Open the link that `agl view` printed.")
            try:
                return await handler(request)
            except (NotFound, UnknownRun) as error:
                return failure(404, str(error))
            except ConfigError as error:
                return failure(400, str(error))
            except LightningError as error:
                return failure(500, str(error))

        return guarded_handler


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def failure(status: int, message: str) -> Response:
    """An error as the page shows it."""
    return answer_json({"error": message}, status)


def answer_json(value: Any, status: int = 200) -> Response:
    """A JSON answer that no cache keeps. NaN and infinity become null."""
    headers = {**HEADERS, "cache-control": "no-store"}
    return Response(msgspec.json.encode(value, enc_hook=_plain), status, headers, "application/json")


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
