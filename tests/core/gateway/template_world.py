"""Short chat templates of every kind, and tokenizers for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentlightning.contracts.rendering import RenderingSettings
from agentlightning.gateway.rendering.load import choose
from agentlightning.gateway.rendering.renderer import Renderer
from agentlightning.gateway.rendering.tokens import Tokens
from agentlightning.registry.registry import registry
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import Completion, Sampling, ints

TOOLS_HEAD = "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
GENERATION = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chatml(calls: str, *, reply: str = "{{ message.content or '' }}") -> str:
    """A ChatML template whose assistant messages are `reply`, then `calls`."""
    return (
        TOOLS_HEAD
        + "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}"
        + reply
        + "{% if message.tool_calls %}"
        + calls
        + "{% endif %}{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
        + GENERATION
    )


EACH = "{% for call in message.tool_calls %}{% set f = call.function %}"
TEMPLATES = {
    "hermes": chatml(EACH + '\n<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>{% endfor %}'),
    "list": chatml(
        '<calls>[{% for call in message.tool_calls %}{% if not loop.first %}, {% endif %}{"name": "{{ call.function.name }}", '
        '"arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}{% endfor %}]'
    ),
    "unmarked": chatml(
        "{% if message.tool_calls | length > 1 %}{{ raise_exception('one call only') }}{% endif %}"
        '{% set f = message.tool_calls[0].function %}{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}',
        reply="{{ message.content if not message.tool_calls else '' }}",
    ),
    "header": chatml(
        "<calls>" + EACH + "<call>functions.{{ f.name }}:{{ loop.index0 }}<args>{{ f.arguments | tojson }}</call>{% endfor %}</calls>"
    ),
    "xml": chatml(
        EACH + "\n<tool_call>\n<function={{ f.name }}>\n{% for key, value in f.arguments.items() %}<parameter={{ key }}>\n"
        "{{ value if value is string else value | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}"
    ),
    "keys": chatml(
        EACH + "\n<tool_call>{{ f.name }}\n{% for key, value in f.arguments.items() %}<key>{{ key }}</key>\n"
        "<value>{{ value if value is string else value | tojson }}</value>\n{% endfor %}</tool_call>{% endfor %}"
    ),
    "python": chatml(
        "<calls>[" + EACH + "{% if not loop.first %}, {% endif %}{{ f.name }}({% for key, value in f.arguments.items() %}"
        "{% if not loop.first %}, {% endif %}{{ key }}={{ value | tojson }}{% endfor %}){% endfor %}]</calls>"
    ),
}
THINKING = (
    "{% set last = namespace(user=-1) %}{% for message in messages %}{% if message.role == 'user' %}{% set last.user = loop.index0 %}"
    "{% endif %}{% endfor %}"
    + chatml(
        TEMPLATES["hermes"].partition("{% if message.tool_calls %}")[2].partition("{% endif %}{% else %}")[0],
        reply="{% if message.reasoning_content and loop.index0 > last.user %}<think>\n{{ message.reasoning_content }}\n</think>\n\n"
        "{% endif %}{{ message.content or '' }}",
    )
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<calls>", "</calls>", "<call>", "</call>", "<args>"]

FLIGHTS = {
    "type": "function",
    "function": {
        "name": "flights",
        "description": "Finds flights.",
        "parameters": {
            "type": "object",
            "properties": {
                "origin": {"type": "string"},
                "seats": {"type": "integer"},
                "direct": {"type": "boolean"},
                "dates": {"type": "array", "items": {"type": "string"}},
            },
        },
    },
}
SEARCH = {
    "type": "function",
    "function": {"name": "search", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}}},
}
OFFERED: list[Any] = [FLIGHTS, SEARCH]


def make_tokens(folder: Path, template: str | None, merges: Sequence[tuple[str, str]] = ()) -> Tokens:
    """A byte tokenizer with the marks of these templates."""
    tokenizer: Any = make_tokenizer(folder, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", *MARKS]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder))
    return Tokens(tokenizer)


def make_renderer(tokens: Tokens, eos: Sequence[int] = (), **settings: Any) -> Renderer:
    """The renderer that these settings give."""
    return choose(tokens, RenderingSettings(**settings), eos, registry())


def asks(*calls: tuple[str, dict[str, Any]], content: str = "") -> dict[str, Any]:
    """An assistant message with tool calls."""
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}}
            for i, (name, arguments) in enumerate(calls)
        ],
    }


def result(number: int, content: str) -> dict[str, Any]:
    """The result of a call."""
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": content}


def sampled(renderer: Renderer, prompt: Sequence[int], ids: Sequence[int]) -> Completion:
    """A reply of these ids, as it is recorded."""
    return Completion(
        call_id="c", attempt_id="a", prompt_ids=ints(list(prompt)), response_ids=ints(list(ids)), logprobs=None,
        versions=ints([0] * len(ids)), sampling=Sampling(), finish_reason="stop", renderer=renderer.name,
    )  # fmt: skip


def read(renderer: Renderer, tokens: Tokens, text: str, *, prompt: Sequence[int] = (), end: Any = "whole", prefix: str = "") -> Any:
    """A reply with this text, read."""
    return renderer.parse(tokens.encode(text), text, ints(list(prompt)), OFFERED, prefix=prefix, end=end, hidden=None)
