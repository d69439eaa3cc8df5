"""One question to a judge's endpoint: asked again after a failure or an unreadable reply, and never recorded as a call of a rollout."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from agentlightning.config.rewards import JudgeSettings
from agentlightning.errors import JudgeError, RewardError
from agentlightning.training.endpoint import Endpoint, Failed, check_status, reply_of
from agentlightning.training.rewards.judge_prompt import Messages
from agentlightning.training.rewards.judge_reply import SHOWN, Unreadable
from agentlightning.types import JSON

T = TypeVar("T")
FORMAT_REFUSED = frozenset({400, 415, 422, 501})
"""HTTP statuses with which an endpoint may refuse `response_format`."""
ONE_REQUEST = frozenset({400, 413, 422})
"""HTTP statuses that blame the request: it may be too long for the judge, and others are not."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds before another request after a failed one."""
log = logging.getLogger("agentlightning")


class JudgeEndpoint:
    """Asks an OpenAI-compatible endpoint."""

    def __init__(self, settings: JudgeSettings, key: str | None) -> None:
        self._settings, self._endpoint = settings, Endpoint(settings, key)
        self._free = asyncio.Semaphore(settings.concurrency)
        self._formats = True
        """Whether the endpoint takes `response_format`, as far as it said."""

    async def ask(self, messages: Messages, schema: JSON, read: Callable[[str], T]) -> T:
        """Return what `read` finds in the reply.

        Raises `RewardError` if no reply is readable, or if the endpoint refuses this request. Raises `JudgeError` if it fails again and
        again, or refuses all requests.
        """
        conversation, pause, failure = messages, FIRST_PAUSE, Exception()
        for attempt in range(self._settings.retries + 1):
            try:
                text = await self._reply(conversation, schema)
            except Failed as error:
                failure = error
                if attempt < self._settings.retries:
                    await asyncio.sleep(min(error.pause or pause, LONGEST_PAUSE))
                    pause *= 2
                continue
            try:
                return read(text)
            except Unreadable as error:
                failure = error
                again = f"That reply cannot be read: {error}. Reply again, as you were asked."
                conversation = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": again}]
        times = f"after {self._settings.retries + 1} request{'s' * bool(self._settings.retries)}"
        if isinstance(failure, Unreadable):
            raise RewardError(f"The judge {self._settings.model!r} gave no score {times}: {failure}.")
        raise JudgeError(
            f"The judge at {self._settings.base_url} does not answer {times}: {self._endpoint.public(str(failure))}. Start it, or check "
            "reward.judge; then resume the run, or score again."
        )

    async def _reply(self, messages: Messages, schema: JSON) -> str:
        body: dict[str, Any] = {"messages": messages, "temperature": 0, "max_tokens": self._settings.max_tokens}
        formatted = {"type": "json_schema", "json_schema": {"name": "judgement", "strict": True, "schema": schema}}
        async with self._free:
            answer = await self._endpoint.post({**body, "response_format": formatted} if self._formats else body)
            if self._formats and answer.status_code in FORMAT_REFUSED:
                plain = await self._endpoint.post(body)
                if plain.is_success:
                    log.info("The judge at %s takes no response_format, so its replies are read as text.", self._settings.base_url)
                    self._formats = False
                answer = plain
        check_status(answer)
        if answer.status_code in ONE_REQUEST:
            raise RewardError(
                f"The judge {self._settings.model!r} refused the request with HTTP {answer.status_code}: "
                f"{self._endpoint.public(answer.text)[:SHOWN]}."
            )
        if not answer.is_success:
            raise JudgeError(
                f"The judge at {self._settings.base_url} refused the request with HTTP {answer.status_code}: "
                f"{self._endpoint.public(answer.text)[:SHOWN]}. Check base_url, model and api_key_env of reward.judge."
            )
        reply = reply_of(answer)
        return f"{reply.text}\n(cut off by the token limit)" if reply.cut else reply.text

    async def close(self) -> None:
        await self._endpoint.close()
