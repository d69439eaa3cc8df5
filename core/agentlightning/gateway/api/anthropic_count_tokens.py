"""`/v1/messages/count_tokens`: how many tokens the prompt of a request would have. Nothing is sampled, so no call is counted.

The prompt is made as for a call: a conversation that goes on from a recorded reply is counted by the tokens that were sampled.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from agentlightning.gateway.api.answers import encode
from agentlightning.gateway.api.anthropic_messages import MessagesForm, read_request
from agentlightning.gateway.api.schema import ANY_TOOL, Refused, check_model, forced_tool
from agentlightning.gateway.auth import AttemptState, check_open
from agentlightning.gateway.conversation import chain, head_hash
from agentlightning.gateway.rendering.tool_text import ask_for_format
from agentlightning.gateway.sampled_call import SamplingService

PATH = f"{MessagesForm.path}/count_tokens"


class TokenCounter:
    """Answers requests for a count."""

    def __init__(self, service: SamplingService) -> None:
        self._service = service

    async def count(self, request: Request) -> Response:
        """The answer to a request, which is an error in Anthropic's form where it is no good."""
        body = await request.body()
        try:
            tokens = await self._count(await self._service.callers.known(request.headers), body)
        except Refused as refusal:
            return Response(MessagesForm().error(refusal), refusal.status, media_type="application/json")
        return Response(encode({"input_tokens": tokens}), media_type="application/json")

    async def _count(self, state: AttemptState | None, body: bytes) -> int:
        request, info, policy = read_request(body), self._service.engine.info, self._service.engine.policy.name
        if state is not None:
            check_open(state.attempt)
            policy = state.rollout.policy
        check_model(request.model, info.model, policy, self._service.models)
        rendering, messages, tools = await self._service.rendering(), request.history(), request.offered()
        bridged = None
        if state is not None:
            earlier, matched, _ = state.conversations.find(head_hash(policy, tools, request.format), messages, chain(messages))
            bridged = None if earlier is None else rendering.bridge(earlier, messages[matched:], tools)
        prompt = rendering.prompt(ask_for_format(messages, request.format), tools) if bridged is None else bridged
        tool = forced_tool(request)
        prefix = "" if tool is None else rendering.prefill(None if tool is ANY_TOOL else tool)
        return len(prompt) + len(rendering.encode(prefix))
