"""Records teams, agents, and tools as spans, whatever class defines them.

The acting agent is the nearest agent by name. A team's own calls, to choose a speaker or to plan, belong to its manager
(`SelectorGroupChatManager`, `MagenticOneOrchestrator`). A manager without such calls leaves no span.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial, wraps
from inspect import iscoroutinefunction
from typing import Any, TypeAlias, cast
from weakref import WeakValueDictionary

from autogen_agentchat.base import ChatAgent, Response, TaskResult, Team
from autogen_agentchat.messages import HandoffMessage
from autogen_agentchat.teams._group_chat._base_group_chat_manager import BaseGroupChatManager
from autogen_agentchat.teams._group_chat._sequential_routed_agent import SequentialRoutedAgent
from autogen_core.tools import BaseTool, FunctionTool, ToolResult, Workbench

from agentlightning.capture.recorder import current as current_recorder
from agentlightning.capture.recorder import use
from agentlightning.capture.to_json import failure, plain
from agentlightning.rl.trajectory.joins import TOOL_CALL_ID
from agentlightning.types import JSON
from agentlightning_autogen.patches import Patches, Wrap
from agentlightning_autogen.spans import Open, begin, current, end, followed, guarded, innermost, logged


class Structure:
    """The wrappers, and the running teams by id. The id is also the key of a team's parts in the runtime."""

    def __init__(self) -> None:
        self._teams: WeakValueDictionary[str, Open] = WeakValueDictionary()

    def put(self, patches: Patches) -> None:
        """Patch AutoGen."""
        patches.family(ChatAgent, _entries("on_messages", "on_messages_stream", self._agent, Response))
        patches.family(Team, _entries("run", "run_stream", self._team, TaskResult))
        patches.family(BaseTool, _entries("run_json", "run_json_stream", _tool, None))
        patches.family(Workbench, _entries("call_tool", "call_tool_stream", _workbench_tool, ToolResult))
        patches.methods(SequentialRoutedAgent, {"on_message_impl": self._message})
        patches.methods(FunctionTool, {"run": _in_context})

    def _agent(self, agent: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Open | None:
        name = str(agent.name)
        return None if _inside(agent) else begin("agent", name, agent, innermost(), agent=name)

    def _team(self, team: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Open | None:
        name = str(team.name)
        part = None if _inside(team) else begin("agent", name, team, innermost(), agent=name)
        if part is not None:
            part.attributes["team"] = type(team).__name__
            self._teams[str(getattr(team, "_team_id", ""))] = part
        return part

    def _message(self, original: Any) -> Any:
        """Handle a team's message in the team's rollout, even if its runtime started outside the rollout."""

        @wraps(original)
        async def handle(receiver: Any, message: Any, context: Any) -> Any:
            team = self._teams.get(receiver.id.key)
            recorder = team.recorder() if team is not None and not team.ended else None
            if team is None or recorder is None:
                return await original(receiver, message, context)
            with use(recorder), current(team):
                manager = None
                if isinstance(receiver, BaseGroupChatManager):
                    with guarded("a manager"):
                        name = str(getattr(receiver, "_name", type(receiver).__name__))
                        manager = begin("agent", name, receiver, team, agent=name, quiet=True)
                if manager is None:
                    return await original(receiver, message, context)
                return await _within(Entered(manager), original(receiver, message, context))

        return handle


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


Enter: TypeAlias = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Open | None]
"""Return the part that a method call starts, from its object and arguments, or None."""


def _entries(run: str, stream: str, enter: Enter, last: type | None) -> dict[str, Wrap]:
    """Wrap both kinds of methods: those that return a result and those that stream it."""

    def entered(self: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Entered | None:
        with guarded(f"the start of {type(self).__name__}"):
            part = enter(self, args, kwargs)
            return Entered(part) if part is not None else None
        return None

    def wrap_whole(original: Any) -> Any:
        @wraps(original)
        async def enter_whole(self: Any, *args: Any, **kwargs: Any) -> Any:
            part = entered(self, args, kwargs)
            return await (original(self, *args, **kwargs) if part is None else _within(part, original(self, *args, **kwargs)))

        return enter_whole

    def wrap_stream(original: Any) -> Any:
        @wraps(original)
        def enter_stream(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            return followed(original(self, *args, **kwargs), partial(entered, self, args, kwargs), last)

        return enter_stream

    return {run: wrap_whole, stream: wrap_stream}


async def _within(part: Entered, doing: Awaitable[Any]) -> Any:
    with part.here():
        try:
            result = await doing
        except BaseException as error:
            part.fail(error)
            raise
    part.finish(result)
    return result


def _inside(owner: object) -> bool:
    """Return True if this object is already running. One of its methods then calls another."""
    part = innermost()
    return part is not None and part.owner is owner


def _tool(tool: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Open | None:
    call_id = kwargs.get("call_id", args[2] if len(args) > 2 else None)
    part = innermost()
    if part is not None and part.kind == "tool" and not part.used:
        if part.owner is tool:
            return None
        if isinstance(part.owner, Workbench) and part.attributes.get(TOOL_CALL_ID) == call_id:
            part.owner = tool  # the tool that the workbench contains
            return None
    return _begin_tool(str(tool.name), tool, kwargs.get("args", args[0] if args else None), call_id)


def _workbench_tool(workbench: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Open | None:
    if _inside(workbench):
        return None
    name, arguments = kwargs.get("name", args[0] if args else ""), kwargs.get("arguments", args[1] if len(args) > 1 else None)
    return _begin_tool(str(name), workbench, arguments, kwargs.get("call_id", args[3] if len(args) > 3 else None))


def _begin_tool(name: str, owner: object, arguments: Any, call_id: str | None) -> Open | None:
    part = begin("tool", name, owner, innermost())
    if part is not None:
        part.attributes["input"] = plain(arguments)
        if call_id is not None:
            part.attributes[TOOL_CALL_ID] = call_id
    return part


def _in_context(original: Any) -> Any:
    """Run a synchronous function's thread in the current context, because AutoGen does not pass it on."""

    @wraps(original)
    async def run(tool: Any, *args: Any, **kwargs: Any) -> Any:
        if current_recorder() is not None and not iscoroutinefunction(tool._func):
            tool, function = copy.copy(tool), tool._func
            tool._func = partial(copy_context().run, function)
        return await original(tool, *args, **kwargs)

    return run


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
