"""Follows messages between agents of `autogen_core`, so that a handler knows its rollout and what it is part of.

A runtime handles messages in tasks of its own, which may have started outside the rollout. A team's message belongs to the rollout of the
team. Any other message belongs to the rollout that sent it. A handler is part of the sender if the sender waits for it. The handler of an
event stands next to its sender. A handler in which nothing is recorded leaves no span.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

from autogen_agentchat.teams._group_chat._base_group_chat_manager import BaseGroupChatManager
from autogen_agentchat.teams._group_chat._sequential_routed_agent import SequentialRoutedAgent
from autogen_core import BaseAgent, MessageContext, SingleThreadedAgentRuntime

from agentlightning.capture.recorder import Recorder, use
from agentlightning.capture.recorder import current as current_recorder
from agentlightning.types import new_id
from agentlightning_autogen.entered import Entered, within
from agentlightning_autogen.patches import Patches
from agentlightning_autogen.spans import Open, begin, current, guarded, innermost


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Sent:
    """Where a message came from."""

    recorder: ref[Recorder]
    part: Open | None
    """The part of the program that sent it. None: the rollout itself."""


class Messages:
    """The wrappers, and the messages of each rollout. `team` returns the open team whose member or manager an agent is."""

    def __init__(self, team: Callable[[SequentialRoutedAgent], Open | None]) -> None:
        self._team = team
        self._by_id: WeakValueDictionary[str, Sent] = WeakValueDictionary()
        self._by_rollout: WeakKeyDictionary[Recorder, list[Sent]] = WeakKeyDictionary()

    def put(self, patches: Patches) -> None:
        """Patch AutoGen."""
        patches.methods(SingleThreadedAgentRuntime, {"send_message": self._send, "publish_message": self._send})
        patches.methods(BaseAgent, {"on_message": self._handle})

    def _send(self, original: Any) -> Any:
        @wraps(original)
        async def send(runtime: Any, *args: Any, **kwargs: Any) -> Any:
            recorder = current_recorder()
            if recorder is not None:
                with guarded("a message"):
                    kwargs["message_id"] = kwargs.get("message_id") or new_id()
                    sent = self._by_id[kwargs["message_id"]] = Sent(ref(recorder), innermost())
                    self._by_rollout.setdefault(recorder, []).append(sent)
            return await original(runtime, *args, **kwargs)

        return send

    def _handle(self, original: Any) -> Any:
        @wraps(original)
        async def handle(receiver: Any, message: Any, ctx: MessageContext) -> Any:
            recorder, above = self._origin(receiver, ctx)
            if recorder is None:
                return await original(receiver, message, ctx)
            with use(recorder), current(above):
                part = None
                with guarded("a message handler"):
                    part = _begin_handler(receiver, above)
                doing: Awaitable[Any] = original(receiver, message, ctx)
                return await (within(Entered(part), doing) if part is not None else doing)

        return handle

    def _origin(self, receiver: Any, ctx: MessageContext) -> tuple[Recorder | None, Open | None]:
        """Return the rollout of a message, and the part of it that contains the handler."""
        if isinstance(receiver, SequentialRoutedAgent):
            team = self._team(receiver)
            return (team.recorder(), team) if team is not None else (None, None)
        sent = self._by_id.get(ctx.message_id)
        if sent is None:
            return current_recorder(), innermost()
        above = sent.part
        if not ctx.is_rpc:
            while above is not None and isinstance(above.owner, BaseAgent):
                above = above.parent
        return sent.recorder(), above


def _begin_handler(receiver: Any, above: Open | None) -> Open | None:
    """Start the part of a handler. A team's members have none: they are `ChatAgent`s, which start their own."""
    if isinstance(receiver, BaseGroupChatManager):
        name = str(getattr(receiver, "_name", type(receiver).__name__))
    elif isinstance(receiver, SequentialRoutedAgent):
        return None
    else:
        name = receiver.id.type
    return begin("agent", name, receiver, above, agent=name, quiet=True)
