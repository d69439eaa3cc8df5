"""A hand-written family of the `renderers` library as a `Renderer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.rendering.renderer import Bridge, Conversation, Parsed, Renderer
from agentlightning.gateway.rendering.tokens import Tokens
from agentlightning.gateway.rendering.tool_text import End, ToolCall, json_text
from agentlightning.types import Completion, IntArray


class LibraryRenderer(Renderer):
    """`family` implements `renderers.Renderer`."""

    streams_calls = False

    def __init__(self, name: str, family: Any, tokens: Tokens, eos: Sequence[int] = ()) -> None:
        self.name, self._family, self._tokens = name, family, tokens
        self.stop_ids = tuple(dict.fromkeys([*family.get_stop_token_ids(), *eos]))

    def prompt(self, conversation: Conversation) -> list[int]:
        """See `Renderer.prompt`."""
        self._check(conversation)
        tools = self._tools(conversation)
        return list(self._family.render_ids([dict(message) for message in conversation.messages], tools=tools, add_generation_prompt=True))

    def bridge(self, earlier: Completion, conversation: Conversation, end: int) -> Bridge:
        """See `Renderer.bridge`."""
        self._check(conversation)
        before, sampled = earlier.prompt_ids.tolist(), earlier.response_ids.tolist()
        new = [dict(message) for message in conversation.messages[end:]]
        rendered = self._family.bridge_to_next_turn(before, sampled, new, tools=self._tools(conversation))
        size = len(before) + len(sampled)
        if rendered is None or rendered.token_ids[:size] != before + sampled:
            return Bridge(None, "rewritten: thinking" if conversation.messages[end - 1].get("reasoning_content") else "rewritten: template")
        return Bridge(tuple(rendered.token_ids[size:]))

    def parse(
        self, ids: Sequence[int], text: str, prompt: IntArray, tools: Sequence[Any], *, prefix: str = "", end: End, hidden: str | None
    ) -> Parsed:
        """See `Renderer.parse`."""
        reply = self._family.parse_response(list(ids), tools=list(tools) or None, prompt_ids=prompt.tolist())
        content = reply.content.partition(hidden)[0] if hidden else reply.content
        if not tools:
            return Parsed(content, (), reply.reasoning_content)
        good = [call for call in reply.tool_calls if call.status == "ok" and call.name]
        calls = tuple(ToolCall(call.name, _json(call.arguments)) for call in good)
        return Parsed(content, calls, reply.reasoning_content)

    def written(self, conversation: Conversation, message: Mapping[str, Any]) -> str | None:
        """See `Renderer.written`."""
        tools = self._tools(conversation)
        before: list[int] = self.prompt(conversation)
        complete: list[int] = self._family.render_ids([*conversation.messages, message], tools=tools, add_generation_prompt=False)
        after = complete[len(before) :]
        end = next((place for place, token in enumerate(after) if token in self.stop_ids), None)
        if complete[: len(before)] != before or end is None:
            return None
        return self._tokens.decode(after[:end])

    def _check(self, conversation: Conversation) -> None:
        """Refuse the settings of a request that this family does not honour."""
        settings = {"continue_final_message": conversation.unfinished, "add_generation_prompt": not conversation.asks}
        settings["chat_template_kwargs"] = bool(conversation.arguments)
        for name in (name for name, value in settings.items() if value):
            raise Refused(f"The renderer {self.name!r} does not support {name}. Set renderer = 'template'.", param=name)

    def _tools(self, conversation: Conversation) -> list[Any] | None:
        if conversation.tools and not getattr(self._family, "supports_tools", True):
            raise Refused(
                f"The renderer {self.name!r} reads no tool calls. Set renderer = 'template', or send the request without tools.",
                param="tools",
            )
        return list(conversation.tools) or None


def _json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json_text(arguments or {})
