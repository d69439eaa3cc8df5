"""The gateway renders templates itself, and gives exactly what transformers gives."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from template_world import GEMMA, TEMPLATES, THINKING

from agentlightning.gateway.rendering.jinja import Render, fast_render
from agentlightning.testing.tokenizer import make_tokenizer

CALL = {"id": "a", "type": "function", "function": {"name": "search", "arguments": {"query": "b"}}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "Question? "},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "I look."},
    {"role": "tool", "content": "Result", "tool_call_id": "a"},
    {"role": "assistant", "content": "Answer", "thinking": "Easy."},
    {"role": "user", "content": "<|im_end|> and more"},
]
FEATURES = (
    "{% set last = namespace(at=-1, text='') %}{% for message in messages %}{% if message.role == 'user' %}{% set last.at = loop.index0 %}"
    "{% endif %}{{ loop.first }}{{ message.items() | list | length }}{{ message.missing }}{{ (message.content or '').strip().upper() }}"
    "{{ message.thinking }}{{ message['reasoning_content'] }}{{ loop.previtem.role if not loop.first }}"
    "{% generation %}g{% endgeneration %}{% endfor %}"
    "{{ last.at }}{{ tools | tojson(indent=1) }}{{ bos_token }}{{ extra.keys() | list }}{{ '%s {}'.format(extra.value) }}{{ pad_token }}"
    "{{ messages[0].content.startswith('Q') }}{{ messages[0].get('role') }}{{ extra.get is defined }}{{ undefined_name }}"
)
UNSAFE = (
    "{{ messages.append(1) }}",
    "{{ messages[0].update({}) }}",
    "{{ messages[0].content.__class__.__mro__ }}",
    "{{ messages[0].__class__.x }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ raise_exception('no') }}",
    "{{ messages[0].missing.more }}",
    "{{ messages[0]['content'].format_map.__self__ }}",
    "{% for x in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{{ x.",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def theirs(tokenizer: Any, source: str, tools: Any, reply: bool, extra: dict[str, Any]) -> str:
    options = {"chat_template": source, "tokenize": False, "add_generation_prompt": reply}
    return tokenizer.apply_chat_template(MESSAGES, tools=tools, **options, **extra)


def faster(tokenizer: Any) -> Render:
    render = fast_render(tokenizer, {})
    assert render is not None, "the installed transformers gives templates other values: bring the module `jinja` up to date"
    return render


@pytest.mark.parametrize("source", [FEATURES, THINKING, *TEMPLATES.values()])
@pytest.mark.parametrize("reply", [True, False])
@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "search"}}]])
def test_a_template_writes_what_it_writes_through_transformers(tokenizer: Any, source: str, tools: Any, reply: bool) -> None:
    extra: dict[str, Any] = {"extra": {"value": 1, "none": None}}
    assert faster(tokenizer)(source, MESSAGES, tools, reply, extra) == theirs(tokenizer, source, tools, reply, extra)


@pytest.mark.parametrize("source", [*UNSAFE, GEMMA])
def test_a_template_fails_as_it_fails_through_transformers(tokenizer: Any, source: str) -> None:
    outcomes: list[str] = []
    for render in (lambda: faster(tokenizer)(source, MESSAGES, None, True, {}), lambda: theirs(tokenizer, source, None, True, {})):
        try:
            outcomes.append(render())
        except Exception as error:
            outcomes.append(f"{type(error).__name__}: {error} {getattr(error, 'lineno', None)}")
    assert outcomes[0] == outcomes[1]


def test_messages_stay_as_they_are(tokenizer: Any) -> None:
    before = str(MESSAGES)
    faster(tokenizer)(FEATURES, MESSAGES, None, True, {"extra": {}})
    assert str(MESSAGES) == before


def test_a_tokenizer_that_renders_in_its_own_way_and_arguments_that_are_no_json_are_left_to_transformers(
    tokenizer: Any, tmp_path: Path
) -> None:
    class Louder(type(tokenizer)):
        def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
            return str(super().apply_chat_template(*arguments, **options)).upper()

    make_tokenizer(tmp_path)
    assert fast_render(Louder.from_pretrained(str(tmp_path)), {}) is None
    assert fast_render(tokenizer, {"today": date(2026, 1, 1)}) is None
    assert fast_render(object(), {}) is None
