"""One call that the engine answers: read, plan the prompt, sample, write the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from agentlightning.gateway.api.protocol import About, Asked, Form
from agentlightning.gateway.api.schema import Refused, check_model
from agentlightning.gateway.api.sent import Sent, sent_anyway
from agentlightning.gateway.auth import Incoming, check_open
from agentlightning.gateway.call import Ending, Opening, Service, Step
from agentlightning.gateway.generation import Generation, demonstrated, generate, plan_generation
from agentlightning.gateway.prompt import check_length, plan_prompts, read_history
from agentlightning.gateway.record import Draft, sampled_completions
from agentlightning.gateway.rendering.demonstration import Demonstrate
from agentlightning.gateway.rendering.renderer import Rendering
from agentlightning.gateway.rendering.replies import Reply


@dataclass(frozen=True, slots=True)
class SampledAnswerer:
    """Answers requests in one wire form. See `Answerer`."""

    service: Service
    form: Form[Any]
    rendering: Callable[[], Awaitable[Rendering]]
    demonstrate: Demonstrate | None = None
    demonstrated_steps: int | None = None
    """See `Options`."""

    def error(self, refusal: Refused) -> bytes:
        """See `Answerer.error`."""
        return self.form.error(refusal)

    async def answer(self, incoming: Incoming) -> AsyncGenerator[Step]:
        """See `Answerer.answer`."""
        service, state, rollout = self.service, incoming.state, incoming.state.rollout
        try:
            asked = self.form.parse(incoming.body, state)
            policy = service.policy(rollout.policy, asked.request.model, incoming.agent)
        except Refused:
            yield Draft(sent=sent_anyway(self.form, incoming.body, state))
            raise
        history = read_history(policy, asked, state.conversations)
        draft = Draft(history, Sent.of(asked, history.messages[0]), tools=len(asked.request.offered()))
        yield draft
        check_open(state.attempt)
        check_model(asked.request.model, service.engine.info.model, policy, service.models)
        rendering = await self.rendering()
        prompts = plan_prompts(rendering, asked, history, state.conversations, state.attempt.started)
        draft = replace(draft, context=prompts[0].context)
        yield draft
        for prompt in prompts:
            check_length(prompt, service.engine.info)
        _warn(service, incoming, asked)
        engine = service.engine.policies.get(policy, service.engine)
        planned = plan_generation(rollout, incoming.index, asked, history, rendering, prompts, engine)
        generation = replace(planned, policy=policy)
        recorded = replace(draft, completions=partial(sampled_completions, incoming, generation))
        yield recorded
        shown = self.demonstrated_steps is None or (rollout.step or 0) < self.demonstrated_steps
        if self.demonstrate is not None and shown and rollout.mode == "train" and not asked.prompts:
            generation = await demonstrated(generation, self.demonstrate, rollout, asked)
            recorded = replace(draft, completions=partial(sampled_completions, incoming, generation))
            yield recorded
        async with aclosing(_answer(service, incoming, asked, generation, recorded)) as steps:
            async for step in steps:
                yield step


async def _answer(service: Service, incoming: Incoming, asked: Asked, generation: Generation, draft: Draft) -> AsyncGenerator[Step]:
    """Sample the replies and write them in the form of the request."""
    replies, stream, opened = generation.replies, bool(asked.request.stream), False
    answer = asked.answer(About(incoming.seen.id, service.engine.info.model, incoming.started))
    async with aclosing(generate(generation, incoming.state.rollout.id, streams=stream)) as pieces:
        async for index, piece in pieces:
            if not opened:
                opened = True
                yield Opening(answer.first(replies), answer.error)
            data = answer.piece(index, replies[index], piece)
            if data:
                yield data
    messages = [reply.message() for reply in replies]
    _warn_broken(service, replies)
    yield replace(draft, completions=partial(sampled_completions, incoming, generation, messages=messages))
    yield Ending(answer.last(replies, messages) if stream else answer.body(replies, messages))


def _warn_broken(service: Service, replies: Sequence[Reply]) -> None:
    """Warn of tool calls that cannot be read."""
    for reply in replies:
        problem = reply.problem
        if problem is not None and reply.prefix:
            service.warn_once(
                "tool_choice",
                "The agent demands a tool call, and a reply has none that can be read: %s. The prompt begins the call, but nothing forces "
                "its arguments. Handle replies without a call.",
                problem,
            )
        elif problem is not None:
            service.warn_once(
                "broken call", "A reply looks like a tool call, but it stays text: %s. `agl show RUN ROLLOUT` names such replies.", problem
            )


def _warn(service: Service, incoming: Incoming, asked: Asked) -> None:
    """Warn of settings that have no effect."""
    service.warn_overridden(incoming.state, asked.fields)
    service.warn_ignored(asked.ignored)
    if asked.request.format is not None:
        service.warn_once(
            "format",
            "The agent asks for %s replies. The prompt asks the model for them, but nothing forces it. Handle replies in other formats.",
            asked.request.format.type,
        )
