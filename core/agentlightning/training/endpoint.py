"""Requests to another model's endpoint, which are never recorded as calls of a rollout."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import httpx

from agentlightning.capture.attach import attach
from agentlightning.config.endpoint import EndpointSettings

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses that may pass."""
SHOWN = 200
"""Characters of an answer in a message."""


class Failed(Exception):
    """A request that may succeed later."""

    def __init__(self, problem: str, pause: float | None = None) -> None:
        super().__init__(problem)
        self.pause = pause
        """Seconds that the endpoint asks to wait."""


class Reply(NamedTuple):
    """The reply of an endpoint."""

    text: str
    cut: bool
    """Whether a limit of tokens ended it."""
    tokens: int | None
    """Of prompt and reply together; None: the endpoint does not tell."""


class Endpoint:
    """Sends requests to an OpenAI-compatible endpoint."""

    def __init__(self, settings: EndpointSettings, key: str | None) -> None:
        self.settings, self._key = settings, key
        self._url = f"{settings.base_url.rstrip('/')}/chat/completions"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(timeout=settings.timeout, headers=headers, follow_redirects=False)
        self._limit = "max_tokens"
        """The endpoint's name for the limit of a reply. Some models of OpenAI take only the other one."""

    async def post(self, body: dict[str, Any]) -> httpx.Response:
        """Send one request. Raises `Failed` if the endpoint does not answer."""
        answer = await self._send(body)
        if answer.status_code == 400 and "max_tokens" in body and "max_completion_tokens" in answer.text and self._limit == "max_tokens":
            self._limit = "max_completion_tokens"
            answer = await self._send(body)
        return answer

    async def _send(self, body: dict[str, Any]) -> httpx.Response:
        named = {self._limit if key == "max_tokens" else key: value for key, value in body.items()}
        try:
            with attach(None):  # also if its model is one of `models`
                return await self._client.post(self._url, json={"model": self.settings.model, **named})
        except httpx.TransportError as error:
            raise Failed(": ".join(filter(None, (type(error).__name__, str(error))))) from error

    def public(self, text: str) -> str:
        """The text without the key, which an endpoint may quote."""
        return text.replace(self._key, "...") if self._key else text

    async def close(self) -> None:
        await self._client.aclose()


def check_status(answer: httpx.Response) -> None:
    """Raise `Failed` for an answer that another request may not get."""
    if answer.status_code in RETRIED:
        value = answer.headers.get("retry-after", "")
        raise Failed(f"HTTP {answer.status_code}: {answer.text[:SHOWN]}", float(value) if value.isdigit() else None)


def reply_of(answer: httpx.Response) -> Reply:
    """Read an answer. Raises `Failed` for one of another form."""
    try:
        body = cast("dict[str, Any]", answer.json())
        choice = body["choices"][0]
        content, finish = choice["message"].get("content"), choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Failed(f"its answer is no chat completion: {answer.text[:SHOWN]!r}") from error
    usage: Any = body.get("usage")
    total: Any = cast("dict[str, Any]", usage).get("total_tokens") if isinstance(usage, dict) else None
    return Reply(content if isinstance(content, str) else "", finish == "length", total if isinstance(total, int) else None)
