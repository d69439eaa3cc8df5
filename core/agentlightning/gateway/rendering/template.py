"""A model's own chat template: messages to text, in the form that this template accepts.

Templates differ in what they accept: arguments as a mapping or as JSON text, `content: ""` or none, a system role, a tool role, two
messages of one role in a row. `probe` finds out once, and `ChatTemplate.text` then writes every conversation in that form.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.conversation import text_of
from agentlightning.gateway.rendering.jinja import Render

Message = Mapping[str, Any]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of `renderer = "chatml"`, which works for a model without one."""

NOW = re.compile(r"""strftime_now\(\s*(['"])((?:(?!\1)[^\\])*)\1\s*\)""")
"""A date that a template prints. transformers' own function knows only the present, and takes none in its place."""
RESERVED = {"messages", "tools", "add_generation_prompt", "conversation", "chat_template", "tokenize", "continue_final_message"}
"""What a template gets by other ways than its arguments."""

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "agl_tool_a",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {
                "agl_key_a": {"type": "string", "description": "First."},
                "agl_key_b": {"type": "string", "description": "Second."},
            },
            "required": ["agl_key_a"],
        },
    },
}
"""A tool to probe templates with."""


@dataclass(frozen=True, slots=True)
class Accepts:
    """The forms of messages that a template accepts."""

    system: bool = True
    """A system message. Otherwise its text goes to the first user message."""
    tool_role: bool = True
    """A message of the role `tool`. Otherwise the result becomes a user message."""
    repeats: bool = True
    """Two messages of one role in a row. Otherwise they become one."""
    arguments_as_text: bool = False
    """Arguments of tool calls as JSON text instead of a mapping."""
    empty_content: str | None = ""
    """Content of a message that only calls tools."""
    short_ids: bool = False
    """Ids of tool calls must have nine letters and digits."""
    parts: bool = False
    """Content as a list of parts."""
    content_beside_reasoning: bool = True
    """Content and reasoning in one message that calls tools. Otherwise the content becomes part of the reasoning."""
    reasoning_key: str | None = None
    """The key under which the template reads the reasoning of an earlier reply. None: it writes none."""


@dataclass(slots=True)
class ChatTemplate:
    """The template of a tokenizer, with the arguments of the run."""

    tokenizer: Any
    source: str | Mapping[str, str] | None = None
    """Instead of the tokenizer's own: Jinja text, or several texts by name (`default`, `tool_use`)."""
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    render: Render | None = None
    """See `fast_render`. None: transformers renders."""
    accepts: Accepts = field(default_factory=Accepts)
    says_tools: Callable[[Sequence[Any]], str] | None = None
    """The section of the system message that describes tools, where the template shows none."""
    writes_calls: Callable[[str, Sequence[Any], Sequence[Any]], str] | None = None
    """The text of a message with tool calls, where the template writes none."""

    @property
    def sources(self) -> Mapping[str, str]:
        """The Jinja texts by name. Empty: the model has no template."""
        source: Any = self.source if self.source is not None else getattr(self.tokenizer, "chat_template", None)
        if isinstance(source, str):
            return {"default": source}
        return dict(cast("Mapping[str, str]", source or {}))

    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] = (),
        *,
        reply: bool = True,
        when: datetime | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as the model reads it. `reply`: ready for a reply. `when`: the date that the template may print.

        `arguments` come from one request, on top of those of the run. Raises `Refused` in the template's words.
        """
        return self.raw(self.prepared(messages, tools), tools, reply=reply, when=when, arguments=arguments)

    def raw(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] = (),
        *,
        reply: bool = True,
        when: datetime | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """`text` of messages that have the template's form already."""
        sources = self.sources
        if not sources:
            raise Refused(
                "This model has no chat template. Set chat_template to a Jinja file, or renderer = 'chatml'.", code="chat_template"
            )
        template = sources.get("tool_use") if tools else None
        template = template or sources.get("default") or next(iter(sources.values()))
        more = {**self.arguments, **(arguments or {})}
        reserved = sorted(RESERVED & more.keys())
        if reserved:
            raise Refused(f"{reserved[0]} is no argument of a chat template. Set it in the request itself.", param="chat_template_kwargs")
        if when is not None:
            template = NOW.sub(lambda call: json.dumps(when.strftime(call[2])), template)
        shown = list(tools) if tools and self.says_tools is None else None
        try:
            if messages and self.render is not None:
                return self.render(template, messages, shown, reply, more)
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=shown,
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=reply,
                    **more,
                )
            )
        except Exception as error:  # templates raise whatever their operators raise
            line = getattr(error, "lineno", None)  # of a syntax error
            problem = f"Line {line} of the chat template is not valid Jinja: {error}. Correct it"
            if line is None:
                problem = f"The chat template of this model refuses the messages: {error}. Change the messages"
            raise Refused(f"{problem}, or set chat_template to another Jinja file.", param="messages", code="chat_template") from error

    def prepared(self, messages: Sequence[Message], tools: Sequence[Any]) -> list[dict[str, Any]]:
        """The messages in the form that the template accepts."""
        accepts, prepared = self.accepts, list[dict[str, Any]]()
        messages = self._with_tools(messages, tools)
        folded = ""
        for message in messages:
            message = self._in_form(message, tools)
            if message["role"] == "system" and not accepts.system:
                folded = f"{folded}\n\n{message['content']}".strip()
                continue
            if folded and message["role"] == "user":
                message, folded = {**message, "content": f"{folded}\n\n{text_of(message['content'])}"}, ""
            prepared.append(message)
        if folded:
            prepared.insert(0, {"role": "user", "content": folded})
        prepared = prepared if accepts.repeats else _merged(prepared)
        return [_in_parts(message) for message in prepared] if accepts.parts else prepared

    def _with_tools(self, messages: Sequence[Message], tools: Sequence[Any]) -> Sequence[Message]:
        if self.says_tools is None or not tools:
            return messages
        section = self.says_tools(tools)
        own = bool(messages) and messages[0]["role"] == "system"
        system = text_of(messages[0]["content"]) if own else default_system(self)
        first = {"role": "system", "content": f"{system}\n\n{section}" if system else section}
        return [first, *messages[1 if own else 0 :]]

    def _in_form(self, message: Message, tools: Sequence[Any]) -> dict[str, Any]:
        form = {key: value for key, value in message.items() if key != "reasoning_content"}
        calls: Sequence[Any] = form.get("tool_calls") or ()
        if form["role"] == "tool" and not self.accepts.tool_role:
            return {"role": "user", "content": text_of(form.get("content"))}
        reasoning = message.get("reasoning_content")
        if reasoning and calls and not self.accepts.content_beside_reasoning and form.get("content"):
            reasoning, form["content"] = f"{reasoning}\n\n{text_of(form['content'])}", ""
        if reasoning and self.accepts.reasoning_key is not None:
            form[self.accepts.reasoning_key] = reasoning
        if "tool_call_id" in form and self.accepts.short_ids:
            form["tool_call_id"] = _short(form["tool_call_id"])
        if not calls:
            return form
        if self.writes_calls is not None:
            form.pop("tool_calls")
            return {**form, "content": self.writes_calls(text_of(form.get("content")), calls, tools)}
        form["tool_calls"] = [self._call(call) for call in calls]
        if not form.get("content"):
            form["content"] = self.accepts.empty_content
        return form

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        arguments = call["function"].get("arguments")
        if self.accepts.arguments_as_text:
            arguments = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        elif isinstance(arguments, str):
            arguments = _mapping(arguments)
        form = {**call, "function": {**call["function"], "arguments": arguments}}
        return {**form, "id": _short(call["id"])} if self.accepts.short_ids and call.get("id") else form


def _mapping(arguments: str) -> Any:
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        return arguments
    return cast(Any, value) if isinstance(value, dict) else arguments


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}] if content else []} if isinstance(content, str) else message


def _short(id: Any) -> str:
    text = str(id)
    return text if re.fullmatch("[a-zA-Z0-9]{9}", text) else hashlib.sha256(text.encode()).hexdigest()[:9]


def _merged(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours of one role as one message."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        last = merged[-1] if merged else None
        if last is None or last["role"] != message["role"] or last["role"] == "tool" or last.get("tool_calls"):
            merged.append(message)
            continue
        texts = [text for text in (text_of(last.get("content")), text_of(message.get("content"))) if text]
        merged[-1] = {**last, **message, "content": "\n\n".join(texts)}
    return merged


def default_system(template: ChatTemplate) -> str | None:
    """The system prompt that the template adds to a conversation without one."""
    user = {"role": "user", "content": "aglquestion"}
    try:
        marked = template.raw([{"role": "system", "content": "aglsystem"}, user])
        plain = template.raw([user])
    except Refused:
        return None
    before, mark, after = marked.partition("aglsystem")
    if not mark or not plain.startswith(before) or not plain.endswith(after) or len(plain) < len(before) + len(after):
        return None
    return plain[len(before) : len(plain) - len(after)]
