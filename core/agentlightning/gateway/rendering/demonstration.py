"""Demonstrations in place of samples: the desired reply to a call, in the tokens that this model would use.

The agent reads exactly these tokens. A demonstration that reads back as another message is refused, never repaired.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from msgspec.structs import replace

from agentlightning.contracts.engine import Chunk, Engine
from agentlightning.errors import EngineError
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.conversation import canonical
from agentlightning.gateway.rendering.renderer import Conversation, Rendering
from agentlightning.gateway.rendering.replies import Reply
from agentlightning.types import JSON, IntArray, Policy, Rollout, Sampling, ints

log = logging.getLogger("agentlightning.gateway")

Demonstrator: TypeAlias = Callable[[JSON, list[dict[str, Any]], list[dict[str, Any]]], dict[str, Any] | None]
"""`(task, messages, tools) -> message`: a good reply to this request, in OpenAI's form. None: there is none."""


@dataclass(frozen=True, slots=True)
class WithSettings:
    """A source of demonstrations that also heeds the other settings of a request."""

    answer: Callable[[JSON, list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]], dict[str, Any] | None]
    """`(task, messages, tools, settings) -> message`, with `settings` as in `Demonstrated`."""


Demonstrate: TypeAlias = Demonstrator | WithSettings


class DemonstratingEngine(Engine):
    """An `Engine` with one fixed reply. Nobody sampled it, so it has no logprobs and no version."""

    def __init__(self, engine: Engine, reply: IntArray) -> None:
        self.info, self.policy = engine.info, engine.policy
        self.reply = reply
        """(tokens,)"""

    async def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        """The whole reply as one chunk."""
        yield Chunk(self.reply, None, -1, "stop")

    async def load(self, policy: Policy) -> dict[str, float]:
        """See `Engine.load`."""
        self.policy = policy
        return {}

    async def pause(self) -> None: ...
    async def resume(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Demonstrated:
    """A request for a demonstration."""

    rollout: Rollout
    rendering: Rendering
    messages: Sequence[dict[str, Any]]
    """From the agent."""
    conversation: Conversation
    """In the prompt."""
    reply: Reply
    """Still empty, with its prompt, sampling and prefix."""
    settings: dict[str, Any]
    """What the agent set of `tool_choice`, `parallel_tool_calls`, `response_format`, and `stop` (a tuple of texts), in OpenAI's form."""


async def demonstration(demonstrate: Demonstrate, request: Demonstrated, engine: Engine) -> DemonstratingEngine | None:
    """An engine that answers a request with its demonstration; None if there is none. Raises `Refused` for a demonstration that this model
    cannot write."""
    arguments = copy.deepcopy((request.rollout.task.input, list(request.messages), list(request.conversation.tools)))
    try:
        if isinstance(demonstrate, WithSettings):
            message: Any = await asyncio.to_thread(demonstrate.answer, *arguments, request.settings)
        else:
            message = await asyncio.to_thread(demonstrate, *arguments)
    except EngineError as error:  # of a teacher
        raise Refused(f"Task {request.rollout.task.id} has no demonstration: {error}", code="demonstration") from error
    except Exception as error:
        log.error("The demonstration for task %s failed.", request.rollout.task.id, exc_info=error)
        raise _refused(request, f"it raised {type(error).__name__}: {error}") from error
    if message is None:
        return None
    wanted = _checked(request, message)
    ids = _written(request, wanted)
    limit, room = request.reply.sampling.max_tokens, engine.info.context_length - len(request.reply.prompt_ids)
    if len(ids) > room or (limit is not None and len(ids) > limit):
        least = room if limit is None else min(room, limit)
        raise _refused(request, f"it has {len(ids)} tokens, and the limit is {least}")
    answering = DemonstratingEngine(engine, ints(ids))
    await _check_read_back(request, wanted, answering)
    return answering


def unsampled(sampling: Sampling) -> Sampling:
    """The sampling of a demonstration: its loss is the cross-entropy of the model's own distribution."""
    return replace(sampling, temperature=1.0, top_p=1.0, top_k=0)


def _refused(request: Demonstrated, why: str) -> Refused:
    return Refused(f"The demonstration for task {request.rollout.task.id} is not usable: {why}. Correct it.", code="demonstration")


def _checked(request: Demonstrated, message: Any) -> dict[str, Any]:
    """The assistant's message in OpenAI's form, arguments as JSON text."""
    if not isinstance(message, Mapping):
        raise _refused(request, f"it is a {type(message).__name__}, not an assistant message as a dict, or None")
    fields = cast("Mapping[str, Any]", message)
    content, role = fields.get("content"), fields.get("role", "assistant")
    if role != "assistant" or not (content is None or isinstance(content, str)):
        raise _refused(request, f"its role is {role!r} and its content a {type(content).__name__}, not 'assistant' and text (or None)")
    names = [tool["function"]["name"] for tool in request.conversation.tools]
    calls: list[dict[str, Any]] = []
    for number, call in enumerate(cast("list[Any]", fields.get("tool_calls") or [])):
        try:
            name, arguments = call["function"]["name"], call["function"]["arguments"]
        except (TypeError, KeyError) as error:
            form = '{"function": {"name": ..., "arguments": ...}}'
            raise _refused(request, f"its tool call {number} is {call!r:.100}, not {form} as in OpenAI's form") from error
        if name not in names:
            raise _refused(request, f"it calls the tool {name!r}, and the request offers {', '.join(names) or 'none'}")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append({"id": f"demonstrated-{number}", "type": "function", "function": {"name": name, "arguments": text}})
    if not content and not calls:
        raise _refused(request, "it has neither content nor tool calls")
    return {"role": "assistant", "content": content or "", **({"tool_calls": calls} if calls else {})}


def _written(request: Demonstrated, message: dict[str, Any]) -> list[int]:
    """The ids of the reply, with its end mark."""
    rendering, prefix = request.rendering, request.reply.prefix
    text = rendering.renderer.written(request.conversation, message)
    if text is None:
        raise _refused(request, f"the renderer {rendering.name!r} cannot write it as a reply to its prompt")
    if not text.startswith(prefix):
        raise _refused(request, f"it starts with {text[:40]!r}, and the request demands {prefix!r}")
    ids = rendering.encode(text[len(prefix) :])
    if any(token in rendering.stop_ids for token in ids):
        raise _refused(request, "it has an end mark in the middle of its text")
    return [*ids, rendering.stop_ids[0]]


async def _check_read_back(request: Demonstrated, wanted: dict[str, Any], engine: DemonstratingEngine) -> None:
    """Raises `Refused` unless the agent reads the same message."""
    reply = request.reply
    trial = Reply(reply.rendering, reply.prompt_ids, reply.sampling, reply.tools, reply.prefix, reply.single)
    async with aclosing(trial.run(engine)) as pieces:
        async for _ in pieces:
            pass
    read = trial.message()
    if canonical(read) != canonical(wanted) or len(trial.ids) < len(engine.reply):
        raise _refused(request, f"the agent would read it as {_shown(read)} instead of {_shown(wanted)}")


def _shown(message: Mapping[str, Any]) -> str:
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()]
    return f"{message.get('content') or ''!r}" + (f" with the calls {calls}" if calls else "")
