"""Finds the format of tool calls in renderings of marked calls: with no, one and two arguments, and of two calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from agentlightning.gateway.rendering.frames import Frames, empty_reasoning, turn_end
from agentlightning.gateway.rendering.marked import (
    NAMES,
    REPLY,
    RESULT,
    TAG,
    TOOLS,
    USER,
    VALUES,
    asks,
    call,
    common_prefix,
    header,
    rendered,
    result,
    shared,
)
from agentlightning.gateway.rendering.template import ChatTemplate
from agentlightning.gateway.rendering.tool_format import CallFormat

KEY_A, KEY_B = VALUES
VALUE_A, VALUE_B = VALUES.values()


def call_format(template: ChatTemplate, frames: Frames) -> tuple[CallFormat, str] | None:
    """(the format of calls, the text after a reply with calls). None: the template writes none that can be read."""
    one = _written(template, frames, [call()])
    if one is None:
        return None
    body, closing = one
    if NAMES[0] not in body or VALUE_A not in body:
        return None
    two, none = _written(template, frames, [call(0), call(1)]), _written(template, frames, [call(0, {})])
    pair = None if two is None or not all(name in two[0] for name in NAMES) else two[0]
    format = _object(body, pair) or _named(body, pair, none[0] if none is not None else None)
    if format is None or (format.kind == "tagged" and not _same_marks(template, frames, format)):
        return None
    tail = body[body.rindex(VALUE_B) + len(VALUE_B) :]
    return replace(format, inside=_inside(template, frames, format), value_tail=tail), closing


def _inside(template: ChatTemplate, frames: Frames, format: CallFormat) -> int:
    """See `CallFormat.inside`."""
    written = _written(template, frames, [call()], content=REPLY)
    opening, _, rest = written[0].partition(REPLY) if written is not None else ("", "", "")
    return len(opening) if opening.strip() and rest and format.before == opening + rest[: len(format.before) - len(opening)] else 0


def _same_marks(template: ChatTemplate, frames: Frames, format: CallFormat) -> bool:
    """Whether numbers stand between the same marks as texts."""
    number = _written(template, frames, [call(0, {KEY_A: 4711, KEY_B: VALUE_B})])
    return number is not None and f"{format.argument[1]}4711{format.argument[2]}" in number[0]


def _written(template: ChatTemplate, frames: Frames, calls: list[dict[str, Any]], content: str = "") -> tuple[str, str] | None:
    """(a reply with these calls, the text after it)"""
    prompt = rendered(template, [USER], TOOLS)
    last = rendered(template, [USER, asks(*calls, content=content)], TOOLS, reply=False) or ""
    followed = rendered(template, [USER, asks(*calls, content=content), *(result(number) for number in range(len(calls)))], TOOLS)
    if prompt is None or followed is None:
        return None
    body, name = followed[common_prefix(prompt, followed) :], calls[-1]["function"]["name"]
    at = body.find(name)
    if at < 0 or followed.find(USER["content"]) > len(followed) - len(body):
        return None
    for value in json.loads(calls[-1]["function"]["arguments"]).values():
        at = max(at, body.find(str(value), at) + len(str(value)))
    mark = frames.closing.strip()
    stop = body.find(mark, at) if mark else -1
    if stop >= 0:
        body, closing = body[:stop], turn_end(body[stop:])
        if frames.closing[:1].isspace() and body.endswith(frames.closing[:1]):
            body, closing = body[:-1], frames.closing[:1] + closing
    else:  # the end of a turn is the next one's beginning, or another mark
        body = body[: _end(template, body, name, last[common_prefix(prompt, last) :])]
        closing = _after_content(template)
        body, closing = (body.removesuffix(closing), closing) if closing and body.endswith(closing) else (body, "")
    if frames.reasoning is not None:
        body = re.sub("^" + empty_reasoning(frames.reasoning, opened=True), "", body, count=1)
    return body.lstrip("\n"), closing


def _after_content(template: ChatTemplate) -> str:
    """The mark after content that follows calls (Gemma 4), which ends such a turn."""
    text = rendered(template, [USER, asks(content=REPLY)], TOOLS, reply=False) or ""
    return turn_end(text.rpartition(REPLY)[2]) if NAMES[0] in text and REPLY in text.rpartition(NAMES[0])[2] else ""


def _end(template: ChatTemplate, body: str, name: str, last: str) -> int:
    """The end of a reply without an end mark: as far as a conversation that ends there goes the same way."""
    ends = shared(last[last.find(name) :], body[body.find(name) :])
    ask = TAG.match(header(template, TOOLS).strip())
    if ask is not None:
        ends = ends.partition(ask[0])[0]
    return body.find(name) + len(ends) if ends else body.find(RESULT)


def _objects(body: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(start, end, value) of the JSON objects in a text."""
    position = 0
    while (position := body.find("{", position)) >= 0:
        try:
            value, stop = json.JSONDecoder().raw_decode(body, position)
        except ValueError:
            position += 1
            continue
        if isinstance(value, dict):
            yield position, stop, value
        position = stop


def _object(body: str, pair: str | None) -> CallFormat | None:
    """Calls as JSON objects that contain the name."""
    objects = [(start, stop, value) for start, stop, value in _objects(body) if NAMES[0] in value.values()]
    if len(objects) != 1:
        return None
    [(start, stop, value)] = objects
    name_key = next(key for key, item in value.items() if item == NAMES[0])
    arguments_key = next((key for key, item in value.items() if item in (VALUES, json.dumps(VALUES))), None)
    if arguments_key is None:
        return None
    at, as_text = body.index(NAMES[0]), isinstance(value[arguments_key], str)
    opening = body.find('"{' if as_text else "{", at)
    between, before, after = None, body[:start], body[stop:]
    both = [] if pair is None else [item for item in _objects(pair) if set(NAMES) & set(map(str, item[2].values()))]
    if pair is not None and len(both) == 2:
        before, between, after = pair[: both[0][0]], pair[both[0][1] : both[1][0]], pair[both[1][1] :]
    return CallFormat(
        "object", before, between, after, body[:at], body[at + len(NAMES[0]) : opening] if opening >= 0 else "",
        name_key=name_key, arguments_key=arguments_key, arguments_as_text=as_text,
    )  # fmt: skip


def _named(body: str, pair: str | None, none: str | None) -> CallFormat | None:
    """Calls whose name stands before the arguments."""
    at = body.index(NAMES[0])
    stop = at + len(NAMES[0])
    key, value = body.find(KEY_A, stop), body.find(VALUE_A, stop)
    if key < 0 or value < key:
        return None
    arguments = next(((start, end) for start, end, item in _objects(body) if item == VALUES and start >= stop), None)
    last = body.rindex(VALUE_B) + len(VALUE_B)
    if arguments is not None:
        end, format = arguments[1], CallFormat("header", body[:at], None, body[arguments[1] :], body[:at], body[stop : arguments[0]])
    elif body[stop] == "(" and body.find(")", last) > 0:
        end = body.find(")", last) + 1
        format = CallFormat("python", body[:at], None, body[end:], body[:at], "(")
    elif (quoted := _quoted(body, at, last)) is not None:
        end, format = body.find("}", last) + 1, quoted
    else:
        tagged = _tagged(body, none, at, stop)
        if tagged is None:
            return None
        end, format = len(body) - len(tagged.after), tagged
    return format if pair is None else _paired(format, pair, end - at)


def _paired(format: CallFormat, pair: str, size: int) -> CallFormat:
    """A format with the text between two calls. `size`: of a call, from its name on."""
    first, second = pair.index(NAMES[0]), pair.index(NAMES[1])
    numbered = format.kind == "header" and not pair[second + len(NAMES[1]) :].startswith(format.name_suffix)
    return replace(format, before=pair[:first], between=pair[first + size : second], numbered=numbered)


def _quoted(body: str, at: int, last: int) -> CallFormat | None:
    """Arguments as an object with bare keys and quote marks of their own."""
    match = re.compile(rf"{{{KEY_A}:(?P<quote>\S+?){VALUE_A}(?P=quote),{KEY_B}:(?P=quote){VALUE_B}(?P=quote)}}").match(
        body, at + len(NAMES[0])
    )
    if match is None:
        return None
    return CallFormat("quoted", body[:at], None, body[match.end() :], body[:at], "", quote=match["quote"])


def _tagged(body: str, none: str | None, at: int, stop: int) -> CallFormat | None:
    """Arguments one after another, each between marks."""
    key_a, value_a = body.index(KEY_A, stop), body.index(VALUE_A, stop)
    key_b, value_b = body.find(KEY_B, value_a), body.find(VALUE_B, value_a)
    if key_b < 0 or value_b < key_b:
        return None
    to_first, middle = body[stop:key_a], body[key_a + len(KEY_A) : value_a]
    to_next, rest = body[value_a + len(VALUE_A) : key_b], body[value_b + len(VALUE_B) :]
    size = 0
    if none is not None:  # the end of a call without arguments is the end of every call
        size = len(shared(rest[::-1], none[none.index(NAMES[0]) + len(NAMES[0]) :][::-1]))
        while size and len(rest) - size > 0 and not rest[len(rest) - size :].lstrip().startswith(("<", "[", "}", "]")):
            size -= 1
    closing = shared(rest[: len(rest) - size] or rest, to_next) or rest[: len(rest) - size]
    opening = to_next[len(closing) :]
    head = to_first.removesuffix(opening) if opening and to_first.endswith(opening) else to_first
    if not (closing.strip() and middle.strip()):
        return None
    return CallFormat("tagged", body[:at], None, rest[len(closing) :], body[:at], head, argument=(opening, middle, closing))
