"""One call that the engine answers: match, render, generate, record, reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Send

from agentlightning.contracts.engine import Engine
from agentlightning.contracts.store import LightningStore
from agentlightning.gateway.api.answers import part, send_json, start
from agentlightning.gateway.api.protocol import About, Answer, Asked, Form
from agentlightning.gateway.api.schema import ANY_TOOL, ChatRequest, Refused, check_model, forced_tool
from agentlightning.gateway.auth import AttemptState, Callers, check_open
from agentlightning.gateway.call import Exchange, Gone, Service
from agentlightning.gateway.conversation import chain, head_hash, request_hash
from agentlightning.gateway.rendering.demonstration import Demonstrate, Demonstrated, DemonstratingEngine, demonstration, unsampled
from agentlightning.gateway.rendering.renderer import Rendering
from agentlightning.gateway.rendering.replies import Piece, Reply
from agentlightning.gateway.rendering.tool_text import ask_for_format
from agentlightning.gateway.sampling import choose_sampling
from agentlightning.types import CallStatus, Completion, IntArray, ints


class SamplingService(Service):
    """What the endpoints of a gateway over an engine share."""

    def __init__(
        self,
        store: LightningStore,
        engine: Engine,
        callers: Callers,
        rendering: Callable[[], Awaitable[Rendering]],
        demonstrate: Demonstrate | None = None,
        models: Collection[str] = (),
    ) -> None:
        super().__init__(store, engine, callers, models)
        self.rendering, self.demonstrate = rendering, demonstrate


class Sampled(Exchange):
    """One request in one wire form, and its answer."""

    def __init__(self, service: SamplingService, form: Form, state: AttemptState, headers: Headers, body: bytes, started: float) -> None:
        super().__init__(service, state, headers, body, started)
        self._service, self._engine, self._form = service, service.engine, form
        self._demonstration: DemonstratingEngine | None = None  # what answers instead of the engine
        self._continues: str | None = None
        self._follows: str | None = None  # the call whose reply it continues, and how many messages that reply ends
        self._matched = 0
        self._keep_from: int | None = None
        self._replies: list[Reply] = []
        self._messages: list[dict[str, Any]] | None = None  # what the replies say, once they are complete
        self._rendering: Rendering | None = None

    def _error(self, refusal: Refused) -> bytes:
        return self._form.error(refusal)

    async def _answer(self, send: Send, gone: asyncio.Future[None]) -> None:
        asked = self._form.parse(self._body, self._state)
        await self._prepare(asked)
        answer = asked.answer(About(self._seen.id, self._engine.info.model, self._started))
        reply = self._stream if asked.request.stream else self._plain
        await reply(answer, send, gone)

    async def _prepare(self, asked: Asked) -> None:
        """From the request to prompts: everything that can be refused is refused here."""
        service, request, rollout, info = self._service, asked.request, self._state.rollout, self._engine.info
        tools, self._keep_from = request.offered(), asked.keep_from
        self._histories = [[_prompt_message(prompt)] for prompt in asked.prompts] or [request.history()]
        self._head = head_hash(rollout.policy, tools, request.format)
        hashes = [chain(history) for history in self._histories]
        self._request_hash = self._seen.request_hash = request_hash(self._head, [".".join(each[-1] for each in hashes)])
        check_open(self._state.attempt)
        check_model(request.model, info.model, rollout.policy, service.models)
        self._rendering = rendering = await service.rendering()
        if tools and not rendering.calls_tools:
            raise Refused(f"tools cannot be offered: the renderer {rendering.name!r} of this model reads no tool calls", param="tools")
        prefix = _prefix(request, rendering)
        if asked.prompts:
            prompts = [ints(rendering.encode(prompt) if isinstance(prompt, str) else _known(prompt, rendering)) for prompt in asked.prompts]
            self._context = "first"
        else:
            prompt = self._prompt(rendering, request, tools, hashes[0])
            prompts = [ints([*prompt.tolist(), *rendering.encode(prefix)]) if prefix else prompt]
        for prompt in prompts:
            self._check_length(prompt)
        self._say(asked)
        single = request.parallel_tool_calls is False
        for prompt in prompts:
            for _ in range(request.n or 1):
                sampling = choose_sampling(rollout, request, rendering.stop_ids, self._index, len(self._replies))
                self._replies.append(Reply(rendering, prompt, sampling, tools, prefix, single, bool(asked.prompts)))
        if service.demonstrate is not None and rollout.mode == "train" and not asked.prompts:
            await self._demonstrate(service.demonstrate, request)

    async def _demonstrate(self, demonstrate: Demonstrate, request: ChatRequest) -> None:
        """Have the call answered by its demonstration, where there is one."""
        messages, reply = self._histories[0], self._replies[0]
        rendered = ask_for_format(messages, request.format)
        wanted = Demonstrated(self._state.rollout, reply.rendering, messages, rendered, reply.tools, reply)
        self._demonstration = await demonstration(demonstrate, wanted, self._engine)
        if self._demonstration is not None:
            for each in self._replies:
                each.sampling = unsampled(each.sampling)

    def _check_length(self, prompt: IntArray) -> None:
        info = self._engine.info
        if not len(prompt):
            raise Refused("the prompt has no tokens; expected at least one", param="prompt")
        if len(prompt) >= info.context_length:
            raise Refused(
                f"the context of model {info.model!r} is {info.context_length} tokens, and the prompt has {len(prompt)}; shorten the "
                "messages",
                param="messages", code="context_length_exceeded",
            )  # fmt: skip

    def _say(self, asked: Asked) -> None:
        """Warn of what the agent asks for and does not get."""
        request = asked.request
        self._service.warn_overridden(self._state, request)
        for setting in asked.unmet:
            self._service.warn_once(setting, "the agent asks for %s, which this model has no means for; it is answered without", setting)
        if request.format is not None:
            self._service.warn_once(
                "format",
                "the agent asks for %s replies: the prompt asks the model for them, and nothing forces it, since replies are sampled "
                "without constraints; an agent must expect one that does not fit",
                request.format.type,
            )

    def _prompt(self, rendering: Rendering, request: ChatRequest, tools: Sequence[Any], hashes: Sequence[str]) -> IntArray:
        """Bridged from the reply that this request continues, or rendered afresh."""
        [messages] = self._histories
        earlier, matched, self._context = self._state.conversations.find(self._head, messages, hashes)
        if earlier is not None:
            prompt = rendering.bridge(earlier, messages[matched:], tools)
            if prompt is not None:
                self._continues, self._follows, self._matched = earlier.id, earlier.call_id, matched
                return prompt
            self._context = "no bridge"
        return rendering.prompt(ask_for_format(messages, request.format), tools)

    async def _plain(self, answer: Answer, send: Send, gone: asyncio.Future[None]) -> None:
        async with aclosing(self._generate(gone, told=False)) as pieces:
            async for _ in pieces:
                pass
        messages = await self._complete(gone)
        await send_json(send, 200, answer.body(self._replies, messages), self._seen.id)

    async def _stream(self, answer: Answer, send: Send, gone: asyncio.Future[None]) -> None:
        async with aclosing(self._generate(gone)) as pieces:
            async for index, piece in pieces:
                if self._stream_error is None:
                    self._stream_error = answer.error
                    await send(start(200, b"text/event-stream", self._seen.id))
                    await send(part(answer.first(self._replies)))
                data = answer.piece(index, self._replies[index], piece)
                if data:
                    await send(part(data))
        messages = await self._complete(gone)
        await send(part(answer.last(self._replies, messages), more=False))

    async def _generate(self, gone: asyncio.Future[None], *, told: bool = True) -> AsyncGenerator[tuple[int, Piece]]:
        """All choices at once, and their pieces if these are `told`; raises `Gone`, or what the engine raised. Ends with nothing under
        way."""
        queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue()

        async def run(index: int, reply: Reply) -> None:
            try:
                async with aclosing(reply.run(self._demonstration or self._engine, self._state.rollout.id)) as pieces:
                    async for piece in pieces:
                        if told:
                            queue.put_nowait((index, piece))
                if reply.finish is None:
                    raise RuntimeError(f"engine {self._engine.info.model!r} ended a reply without a reason")
                queue.put_nowait(None)
            except Exception as error:
                queue.put_nowait(error)

        def left(_: asyncio.Future[None]) -> None:
            queue.put_nowait(Gone())

        gone.add_done_callback(left)
        tasks = [asyncio.create_task(run(i, reply)) for i, reply in enumerate(self._replies)]
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
            gone.remove_done_callback(left)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _complete(self, gone: asyncio.Future[None]) -> list[dict[str, Any]]:
        """Record the answer, which is about to leave; the messages of its choices."""
        if gone.done():
            raise Gone
        messages = self._messages = [reply.message() for reply in self._replies]
        await self._deliver(gone)
        return messages

    def _input(self) -> dict[str, Any] | None:
        """`Call.input`: the messages to refer to, less those up to a reply that can be referred to itself."""
        if self._keep_from is None:
            return None
        [messages] = self._histories
        behind = None if self._follows is None else self._state.history(self._follows)
        if behind is not None and len(behind) == self._matched - self._keep_from:
            return {"after": self._follows, "messages": messages[self._matched :]}
        return {"after": None, "messages": messages[self._keep_from :]}

    def _completions(self, status: CallStatus) -> list[Completion]:
        rendering = self._rendering
        if rendering is None or status == "refused":
            return []
        messages = self._messages or [reply.message() for reply in self._replies]
        completions: list[Completion] = []
        for choice, (reply, message) in enumerate(zip(self._replies, messages, strict=True)):
            finish = "tool_calls" if reply.finish == "stop" and message.get("tool_calls") else reply.finish
            if finish is None:
                finish = "cancelled" if status == "cancelled" else "error"
            before = self._histories[choice * len(self._histories) // len(self._replies)]
            completions.append(
                Completion(
                    id=reply.id,
                    call_id=self._seen.id,
                    attempt_id=self._state.attempt.id,
                    choice=choice,
                    policy=self._state.rollout.policy,
                    prompt_ids=reply.prompt_ids,
                    response_ids=ints(reply.ids),
                    logprobs=reply.logprobs,
                    versions=reply.versions,
                    sampling=reply.sampling,
                    finish_reason=finish,
                    renderer=rendering.name,
                    tokenizer=rendering.hash,
                    continues=self._continues,
                    conversation=f"{self._head}.{chain([*before, message])[-1]}",
                    message=message,
                    demonstrated=self._demonstration is not None,
                )
            )
        return completions


def _prefix(request: ChatRequest, rendering: Rendering) -> str:
    """The text that the reply must go on from, so that it calls the tool that the request demands."""
    tool = forced_tool(request)
    return "" if tool is None else rendering.prefill(None if tool == ANY_TOOL else tool)


def _known(prompt: tuple[int, ...], rendering: Rendering) -> tuple[int, ...]:
    """The ids, checked: an engine may do anything with one that its model does not have."""
    size = len(rendering.tokenizer)
    for i, token in enumerate(prompt):
        if not 0 <= token < size:
            raise Refused(f"prompt[{i}] is the id {token}; expected 0 to {size - 1}, the tokens of this model", param="prompt")
    return prompt


def _prompt_message(prompt: str | tuple[int, ...]) -> dict[str, Any]:
    """A prompt that is no conversation, as the one message before its reply."""
    return {"role": "prompt", "content": prompt if isinstance(prompt, str) else " ".join(map(str, prompt))}
