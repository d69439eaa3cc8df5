"""`/v1/messages/count_tokens`: the number of tokens in the prompt of a request. Nothing is sampled, so no call is recorded.

The prompt is that of a call: a conversation that continues a recorded reply counts its sampled tokens.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from agentlightning.gateway.api.answers import json_response
from agentlightning.gateway.api.anthropic_messages import MessagesForm, MessagesRequest, canonical_request
from agentlightning.gateway.api.body import convert, read_body, read_fields
from agentlightning.gateway.api.checks import check_request
from agentlightning.gateway.api.parameters import COUNT_TOKENS
from agentlightning.gateway.api.schema import Refused, check_model
from agentlightning.gateway.auth import AttemptState, agent_of, check_open
from agentlightning.gateway.call import Service
from agentlightning.gateway.conversation import Conversations, History, head_hash
from agentlightning.gateway.prompt import plan_prompt
from agentlightning.gateway.rendering.renderer import Rendering

PATH = f"{MessagesForm.path}/count_tokens"


class TokenCounter:
    """Counts the prompt tokens of requests."""

    def __init__(self, service: Service, rendering: Callable[[], Awaitable[Rendering]]) -> None:
        self._service, self._rendering = service, rendering

    async def count(self, request: Request) -> Response:
        """The count, or an error in Anthropic's form."""
        try:
            state = await self._service.callers.attempt(request.headers)
            body = await read_body(request.receive, request.headers, self._service.max_body)
            tokens = await self._count(state, body or b"", agent_of(request.headers))
        except Refused as refusal:
            return Response(MessagesForm().error(refusal), refusal.status, media_type="application/json")
        return json_response({"input_tokens": tokens})

    async def _count(self, state: AttemptState | None, body: bytes, agent: str | None) -> int:
        fields, engine = read_fields(body), self._service.engine
        COUNT_TOKENS.check_refused(fields)
        request = canonical_request(convert(fields, MessagesRequest))
        ignored = COUNT_TOKENS.unhonoured(fields, production=state is None or state.rollout.sampling is None)
        check_request(request)
        self._service.warn_ignored(ignored)
        policy, conversations, started = engine.policy.name, Conversations(), time.time()
        if state is not None:
            check_open(state.attempt)
            policy, conversations, started = state.rollout.policy, state.conversations, state.attempt.started
        policy = self._service.policy(policy, request.model, agent)
        check_model(request.model, engine.info.model, policy, self._service.models)
        history = History.of(head_hash(policy, request.offered(), request.format), request.history())
        return len(plan_prompt(await self._rendering(), request, history, conversations, started).ids)
