"""From a request to the token ids of its prompt: bridged from the reply that it continues, or rendered afresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agentlightning.contracts.engine import EngineInfo
from agentlightning.gateway.api.protocol import Asked
from agentlightning.gateway.api.schema import ANY_TOOL, ChatRequest, Refused, forced_tool
from agentlightning.gateway.conversation import Conversations, History, head_hash
from agentlightning.gateway.rendering.renderer import Conversation, Rendering
from agentlightning.gateway.rendering.tool_text import ask_for_format
from agentlightning.types import Completion, IntArray, ints


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """The prompt of one reply, or of the `n` replies to one history."""

    ids: IntArray
    """(prompt,)"""
    context: str
    """See `Call.context`."""
    prefix: str = ""
    """The end of the prompt that the reply must continue: the beginning of a forced tool call."""
    continues: Completion | None = None
    """The reply that these tokens start with."""
    end: int = 0
    """Messages of the request up to and with that reply."""


def read_history(policy: str, asked: Asked, conversations: Conversations) -> History:
    """The messages of a request. A text or ids to continue count as one message each."""
    request = asked.request
    head = head_hash(policy, request.offered(), request.format)
    prompts = [[_prompt_message(prompt)] for prompt in asked.prompts]
    return conversations.read(head, *(prompts or [request.history()]), policy=policy)


def plan_prompts(rendering: Rendering, asked: Asked, history: History, conversations: Conversations, when: float) -> tuple[Prompt, ...]:
    """The prompts of a request: one, or one for each text to continue. `when`: the start of the attempt, in seconds since the epoch. Raises
    `Refused`."""
    if not asked.prompts:
        return (plan_prompt(rendering, asked.request, history, conversations, when),)
    return tuple(Prompt(ints(_encoded(prompt, rendering)), "first") for prompt in asked.prompts)


def plan_prompt(rendering: Rendering, request: ChatRequest, history: History, conversations: Conversations, when: float) -> Prompt:
    """The prompt of a conversation: the sampled tokens that it continues and what follows, or its messages rendered afresh. Raises
    `Refused` in the words of the chat template."""
    [messages] = history.messages
    match = conversations.find(history)
    conversation = read_conversation(request, conversations.with_reasoning(history), when)
    tool = forced_tool(request)
    prefix = "" if tool is None else rendering.renderer.prefill(None if tool == ANY_TOOL else tool, conversation)
    tail = rendering.encode(prefix) if prefix else []
    context = match.context
    if match.reply is not None and conversation.asks:
        added = len(conversation.messages) - len(messages)
        bridge, context = rendering.bridge(match.reply, conversation, match.end + added)
        if bridge is not None:
            return Prompt(_joined(bridge, tail), context, prefix, match.reply, match.end)
    return Prompt(ints([*rendering.renderer.prompt(conversation), *tail]), context, prefix)


def read_conversation(request: ChatRequest, messages: Sequence[Mapping[str, Any]], when: float) -> Conversation:
    """What the prompt of a request is rendered from: its messages with the reply format, and its tools."""
    return Conversation(
        ask_for_format([dict(message) for message in messages], request.format),
        request.offered(),
        datetime.fromtimestamp(when),
        arguments=request.chat_template_kwargs or {},
        unfinished=bool(request.continue_final_message),
        asks=request.add_generation_prompt is not False,
    )


def check_length(prompt: Prompt, info: EngineInfo) -> None:
    """Raises `Refused` for a prompt that is empty or fills the context."""
    if not len(prompt.ids):
        raise Refused("The prompt has no tokens. Send at least one.", param="prompt")
    if len(prompt.ids) >= info.context_length:
        raise Refused(
            f"The context of model {info.model!r} is {info.context_length} tokens, and the prompt has {len(prompt.ids)}. Shorten the "
            "messages.",
            param="messages", code="context_length_exceeded",
        )  # fmt: skip


def _joined(ids: IntArray, tail: list[int]) -> IntArray:
    return ints([*ids.tolist(), *tail]) if tail else ids


def _encoded(prompt: str | tuple[int, ...], rendering: Rendering) -> list[int]:
    """The ids of a prompt. Ids are checked: an engine may do anything with one that its model does not have."""
    if isinstance(prompt, str):
        return rendering.encode(prompt)
    size = len(rendering.tokenizer)
    for i, token in enumerate(prompt):
        if not 0 <= token < size:
            raise Refused(f"prompt[{i}] is the id {token}. The tokens of this model are 0 to {size - 1}.", param="prompt")
    return list(prompt)


def _prompt_message(prompt: str | tuple[int, ...]) -> dict[str, Any]:
    """A prompt that is no conversation, as the one message before its reply."""
    return {"role": "prompt", "content": prompt if isinstance(prompt, str) else " ".join(map(str, prompt))}
