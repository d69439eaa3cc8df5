"""Structural parts of the program from start to end: teams, agents, tools, and message handlers."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AbstractContextManager
from typing import Any, cast

from autogen_agentchat.base import Response, TaskResult
from autogen_agentchat.messages import HandoffMessage
from autogen_core.tools import ToolResult

from agentlightning.capture.to_json import failure, plain
from agentlightning.types import JSON
from agentlightning_autogen.spans import Open, current, end, guarded, logged


class Entered:
    """A structural part from start to end."""

    def __init__(self, part: Open) -> None:
        self._part = part

    def here(self) -> AbstractContextManager[None]:
        return current(self._part)

    def finish(self, result: Any) -> None:
        if not self._part.ended:
            with guarded(f"the result of {self._part.name}"):
                self._part.attributes.update(_result(self._part, result))
            end(self._part)

    def fail(self, error: BaseException) -> None:
        with logged(self._part):
            end(self._part, error=failure(error))


async def within(part: Entered, doing: Awaitable[Any]) -> Any:
    """Run the code of a part, and end the part with its result or error."""
    with part.here():
        try:
            result = await doing
        except BaseException as error:
            part.fail(error)
            raise
    part.finish(result)
    return result


def _result(part: Open, result: Any) -> dict[str, JSON]:
    if isinstance(result, Response):
        message = result.chat_message
        output: dict[str, JSON] = {"output": plain(message.to_text())}
        return {**output, "handoff": message.target} if isinstance(message, HandoffMessage) else output
    if isinstance(result, ToolResult):
        return {"error" if result.is_error else "output": plain(result.to_text())}
    if part.kind == "tool":
        return {"output": plain(cast("Any", part.owner).return_value_as_string(result))}
    return {"stop_reason": result.stop_reason} if isinstance(result, TaskResult) and result.stop_reason is not None else {}
