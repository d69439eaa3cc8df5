"""Renders chat templates as transformers does, in its own sandbox, without its copies of every message.

transformers copies each message of the history twice before it renders, and Jinja's sandbox checks each `message.role` anew. Both cost more
than the rendering itself, and grow with the history.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, TypeAlias, cast

Render: TypeAlias = Callable[[str, Sequence[Mapping[str, Any]], Any, bool, Mapping[str, Any]], str]
"""(template, messages, tools, whether it asks for a reply, further arguments) to text. All values are plain JSON."""
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""transformers fills the first two from the first of these that a message has."""
SEEN = "{{ [messages, tools, add_generation_prompt, extra, bos_token, eos_token, pad_token] | tojson }}"
"""A template that writes all that a template sees."""
MAPPING_NAMES = frozenset(dir(dict))


def fast_render(tokenizer: Any, arguments: Mapping[str, Any]) -> Render | None:
    """The rendering of this tokenizer's templates. None: the installed transformers gives a template other values than this module."""
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    specials: dict[str, Any] = dict(tokenizer.special_tokens_map)

    def render(source: str, messages: Sequence[Mapping[str, Any]], tools: Any, reply: bool, more: Mapping[str, Any]) -> str:
        normal = [_normal(message) for message in messages]
        values = {**specials, **more}
        return _compiled(source).render(messages=normal, tools=tools, documents=None, add_generation_prompt=reply, **values)

    try:
        json.dumps(arguments)  # those of a request are JSON, those of a run may be dates
        return render if _agrees(tokenizer, render) else None
    except Exception:  # another version of transformers
        return None


def _agrees(tokenizer: Any, render: Render) -> bool:
    """Whether a template sees the same values through transformers."""
    calls = [{"id": "a", "type": "function", "function": {"name": "b", "arguments": {"c": None}}}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "d"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    messages += [{"role": "assistant", "content": "e", key: "f"} for key in REASONING_KEYS]
    extra = {"extra": {"g": [1, None]}}
    theirs = tokenizer.apply_chat_template(messages, tools=calls, chat_template=SEEN, tokenize=False, add_generation_prompt=True, **extra)
    return theirs == render(SEEN, messages, calls, True, extra)


def _normal(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as transformers passes it on."""
    normal = {key: value for key, value in message.items() if value is not None}
    reasoning = next((normal[key] for key in REASONING_KEYS if key in normal), None)
    return normal if reasoning is None else {"thinking": reasoning, **normal, "reasoning_content": reasoning}


@lru_cache(32)
def _compiled(source: str) -> Any:
    """A template with the filters, functions and tags of transformers."""
    from transformers.utils import chat_template_utils

    theirs: Any = getattr(chat_template_utils, "_compile_jinja_template")(source).environment  # noqa: B009 (private: `_agrees` checks it)
    ours: Any = object.__new__(_sandbox(cast(Any, type(theirs))))
    ours.__dict__.update(theirs.__dict__, overlayed=True, linked_to=theirs)  # as Jinja's own `overlay` does
    ours.extensions = {name: extension.bind(ours) for name, extension in theirs.extensions.items()}
    return ours.from_string(source)


@cache
def _sandbox(base: Any) -> Any:
    """Jinja's sandbox with the same answers, found sooner."""
    lookup, check = base.getattr, base.is_safe_attribute
    safe: dict[tuple[type[Any], str], bool] = {}  # by the only things that decide it

    class Sandbox(base):
        def getattr(self, obj: Any, attribute: str) -> Any:
            kind = cast("type[Any]", type(obj))
            if kind is dict and attribute not in MAPPING_NAMES:  # no attribute: a key, which needs no check
                return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
            return lookup(self, obj, attribute)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            kind = cast("type[Any]", type(obj))
            if (kind, attr) not in safe:
                safe[kind, attr] = check(self, obj, attr, value)
            return safe[kind, attr]

    return Sandbox
