"""The replies to one request: their sampling, and the engine's work on all of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from agentlightning.contracts.engine import Engine
from agentlightning.gateway.api.protocol import Asked
from agentlightning.gateway.conversation import History
from agentlightning.gateway.prompt import Prompt
from agentlightning.gateway.rendering.demonstration import Demonstrate, Demonstrated, demonstration, unsampled
from agentlightning.gateway.rendering.renderer import Conversation, Rendering
from agentlightning.gateway.rendering.replies import Piece, Reply
from agentlightning.gateway.rendering.tool_text import ask_for_format
from agentlightning.gateway.sampling import choose_sampling
from agentlightning.types import Rollout


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """The decisions that come before the first token of a call."""

    history: History
    rendering: Rendering
    prompts: tuple[Prompt, ...]
    replies: tuple[Reply, ...]
    """`n` for each prompt, in order. They fill while the engine samples."""
    engine: Engine
    """Answers the call: the engine, or its demonstration."""
    policy: str = "main"
    """Name of the policy that answers."""

    def prompt_of(self, choice: int) -> int:
        """The index of the prompt that a choice answers."""
        return choice * len(self.prompts) // len(self.replies)


def plan_generation(
    rollout: Rollout, call: int, asked: Asked, history: History, rendering: Rendering, prompts: tuple[Prompt, ...], engine: Engine
) -> Generation:
    """Choose the sampling of every reply to the call with this index. Raises `Refused` for settings that no engine honours."""
    request, replies = asked.request, list[Reply]()
    single, raw = request.parallel_tool_calls is False, bool(asked.prompts)
    for prompt in prompts:
        for _ in range(request.n or 1):
            sampling = choose_sampling(rollout, request, rendering.stop_ids, call, len(replies), rendering.renderer.stop_strings)
            replies.append(Reply(rendering, prompt.ids, sampling, request.offered(), prompt.prefix, single, raw))
    return Generation(history, rendering, prompts, tuple(replies), engine)


async def demonstrated(generation: Generation, demonstrate: Demonstrate, rollout: Rollout, asked: Asked) -> Generation:
    """The same call with its demonstration as the engine, where there is one."""
    [messages], reply = generation.history.messages, generation.replies[0]
    conversation = Conversation(ask_for_format(messages, asked.request.format), reply.tools)
    request = Demonstrated(rollout, generation.rendering, messages, conversation, reply, asked.request.settings_for_others())
    engine = await demonstration(demonstrate, request, generation.engine)
    if engine is None:
        return generation
    replies = tuple(replace(reply, sampling=unsampled(reply.sampling)) for reply in generation.replies)
    return replace(generation, replies=replies, engine=engine)


async def generate(generation: Generation, rollout: str, *, streams: bool) -> AsyncGenerator[tuple[int, Piece]]:
    """Sample all replies at once. Yields their pieces if the answer `streams`. Raises the engine's error, and leaves nothing running."""
    if not streams and len(generation.replies) == 1:
        async for _ in _sample(generation, generation.replies[0], rollout):
            pass
        return
    queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue()

    async def run(index: int, reply: Reply) -> None:
        try:
            async for piece in _sample(generation, reply, rollout, streams=streams):
                queue.put_nowait((index, piece))  # at once: a slow client does not hold up the engine
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(run(i, reply)) for i, reply in enumerate(generation.replies)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _sample(generation: Generation, reply: Reply, rollout: str, *, streams: bool = False) -> AsyncGenerator[Piece]:
    """Sample one reply to its end."""
    async with aclosing(reply.run(generation.engine, rollout, streams=streams)) as pieces:
        async for piece in pieces:
            yield piece
    if reply.finish is None:
        raise RuntimeError(f"Engine {generation.engine.info.model!r} ended a reply without a finish reason.")
