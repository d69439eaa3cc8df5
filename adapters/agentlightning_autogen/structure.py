"""Records teams, agents, and tools as spans, whatever class defines them.

The acting agent is the nearest agent by name. A team's own calls, to choose a speaker or to plan, belong to its manager
(`SelectorGroupChatManager`, `MagenticOneOrchestrator`). A manager without such calls leaves no span.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import copy_context
from functools import partial, wraps
from inspect import iscoroutinefunction
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

from autogen_agentchat.base import ChatAgent, Response, TaskResult, Team
from autogen_agentchat.teams._group_chat._sequential_routed_agent import SequentialRoutedAgent
from autogen_core.tools import BaseTool, FunctionTool, ToolResult, Workbench

from agentlightning.capture.recorder import current as current_recorder
from agentlightning.capture.to_json import plain
from agentlightning.rl.trajectory.joins import TOOL_CALL_ID
from agentlightning_autogen.entered import Entered, within
from agentlightning_autogen.messages import Messages
from agentlightning_autogen.patches import Patches, Wrap
from agentlightning_autogen.spans import Open, askers, begin, followed, guarded, innermost


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
        Messages(self._open_team).put(patches)
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

    def _open_team(self, receiver: SequentialRoutedAgent) -> Open | None:
        team = self._teams.get(receiver.id.key)
        return team if team is not None and not team.ended else None


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
            return await (original(self, *args, **kwargs) if part is None else within(part, original(self, *args, **kwargs)))

        return enter_whole

    def wrap_stream(original: Any) -> Any:
        @wraps(original)
        def enter_stream(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            return followed(original(self, *args, **kwargs), partial(entered, self, args, kwargs), last)

        return enter_stream

    return {run: wrap_whole, stream: wrap_stream}


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
    recorder = current_recorder()
    agent = askers().find(recorder, call_id) if recorder is not None else None
    part = begin("tool", name, owner, innermost(), agent=agent)
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
