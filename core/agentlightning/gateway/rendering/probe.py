"""What a chat template is, learned from renderings of marked conversations: the forms it accepts, the frames of a reply, its tool calls.

Nothing here knows the name of a model. Each probe renders a short conversation of unmistakable texts and looks where they stand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.rendering.template import TOOL, Accepts, ChatTemplate
from agentlightning.gateway.rendering.tool_format import CallFormat

USER = {"role": "user", "content": "aglquestion"}
REPLY, THOUGHT, RESULT = "aglreply", "aglthought", "aglresult"
NAMES = ("agl_tool_a", "agl_tool_b")
VALUES = {"agl_key_a": "aglvalue1", "agl_key_b": "aglvalue2"}
TOOLS: list[dict[str, Any]] = [TOOL, {**TOOL, "function": {**TOOL["function"], "name": NAMES[1]}}]
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
CUT_TAG = re.compile(r"(<[^<>\s]*|\[[A-Z_/]*)\Z")
TAG = re.compile(r"<[^<>\n]+>|\[[A-Z_/]+\]")


@dataclass(frozen=True, slots=True)
class Frames:
    """The texts around the parts of a reply, as the template writes them."""

    content: tuple[str, str] = ("", "")
    """Before and after the content."""
    reasoning: tuple[str, str] | None = None
    """Before and after the reasoning. None: the model has none."""
    closing: str = ""
    """After the whole reply: the mark that ends the turn, with the whitespace around it."""
    later_closing: str = ""
    """The same where messages follow. gpt-oss writes another mark then."""
    call_closing: str = ""
    """The same after a reply with tool calls."""


@dataclass(frozen=True, slots=True)
class Traits:
    """The result of probing a template."""

    accepts: Accepts
    frames: Frames
    calls: CallFormat | None
    """None: the template writes no tool calls."""
    shows_tools: bool
    """Whether its prompts describe the tools."""
    header: str = ""
    """The end of a prompt, which asks for a reply."""
    several_messages: bool = False
    """Whether one reply can hold several messages of the template, each with a header (gpt-oss)."""


def probe(template: ChatTemplate) -> Traits:
    """Probe a template. Raises `Refused` for one that renders no conversation at all."""
    template = replace(template, accepts=Accepts())
    accepts = _accepts(template)
    template = replace(template, accepts=accepts)
    needs_tools = _text(template, [USER]) is None
    tools: Sequence[Any] = TOOLS if needs_tools else ()
    template.text([USER], tools)
    frames = _frames(template, tools)
    calls, header = _calls(template, frames), _header(template, tools).strip()
    several = bool(header) and frames.reasoning is not None and header in frames.reasoning[1]
    if several and frames.reasoning is not None:
        frames = replace(frames, reasoning=(frames.reasoning[0], frames.reasoning[1].partition(header)[0]))
    shown = _text(template, [USER], TOOLS)
    if calls is not None:
        calls, call_closing = calls
        frames = replace(frames, call_closing=call_closing)
        if several:
            calls = replace(calls, channel=TAG.match(frames.content[0].strip()) is not None, header=header)
    return Traits(accepts, frames, calls, shown is not None and NAMES[0] in shown, header, several)


def _text(template: ChatTemplate, messages: Sequence[Any], tools: Sequence[Any] = (), *, reply: bool = True) -> str | None:
    try:
        return template.text(messages, tools, reply=reply)
    except Refused:
        return None


def call(number: int = 0, arguments: Any = None, *, id: str | None = None) -> dict[str, Any]:
    """A marked call of the tool with this number."""
    values = VALUES if arguments is None else arguments
    return {
        "id": id or f"call_agl_{number}",
        "type": "function",
        "function": {"name": NAMES[number], "arguments": json.dumps(values)},
    }


def _result(number: int = 0) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_agl_{number}", "name": NAMES[number], "content": RESULT}


RESULT_MESSAGE = _result()


def _accepts(template: ChatTemplate) -> Accepts:
    def works(accepts: Accepts, messages: Sequence[Any], *texts: str, tools: Sequence[Any] = ()) -> bool:
        text = _text(replace(template, accepts=accepts), messages, tools)
        return text is not None and all(word in text for word in texts)

    accepts, base = Accepts(), Accepts()
    needed: Sequence[Any] = () if works(base, [USER], USER["content"]) else TOOLS
    if not works(base, [{"role": "system", "content": "aglsystem"}, USER], "aglsystem", tools=needed):
        accepts = replace(accepts, system=False)
    second = {"role": "user", "content": "aglsecond"}
    if not works(accepts, [USER, second], USER["content"], "aglsecond", tools=needed):
        accepts = replace(accepts, repeats=False)
    for key in REASONING_KEYS:
        reply = {"role": "assistant", "content": "", "reasoning_content": THOUGHT, "tool_calls": [call()]}
        plain = {"role": "assistant", "content": REPLY, "reasoning_content": THOUGHT}
        with_key = replace(accepts, reasoning_key=key)
        if works(with_key, [USER, plain], THOUGHT, tools=needed) or works(with_key, [USER, reply, _result()], THOUGHT, tools=TOOLS):
            accepts = with_key
            break
    asks = {"role": "assistant", "content": "", "tool_calls": [call()]}
    if not works(accepts, [USER, asks, _result()], RESULT, tools=TOOLS):
        asked = {"role": "assistant", "content": REPLY}
        accepts = _accepting_calls(template, accepts, asks, works) or accepts
        if not works(accepts, [USER, asks, _result()], RESULT, tools=TOOLS) and not works(
            accepts, [USER, asked, _result()], RESULT, tools=needed
        ):
            accepts = replace(accepts, tool_role=False)
    best = _text(replace(template, accepts=accepts), [USER, asks, _result()], TOOLS)
    for other in (replace(accepts, empty_content=None), replace(accepts, arguments_as_text=True)):
        text = _text(replace(template, accepts=other), [USER, asks, _result()], TOOLS)
        if text is None or RESULT not in text or NAMES[0] not in text:
            continue
        shorter = other.empty_content != accepts.empty_content and best is not None and len(text) < len(best)
        if best is None or shorter or ("{'agl_key_a'" in best and "{'agl_key_a'" not in text):  # Python's form of a mapping
            best, accepts = text, other
    return accepts


def _accepting_calls(template: ChatTemplate, accepts: Accepts, asks: Any, works: Any) -> Accepts | None:
    """Forms of messages with calls, until one works."""
    for short in (False, True):
        for as_text in (False, True):
            for empty in ("", None):
                trial = replace(accepts, short_ids=short, arguments_as_text=as_text, empty_content=empty)
                if works(trial, [USER, asks, _result()], RESULT, NAMES[0], tools=TOOLS):
                    return trial
    return None


def _header(template: ChatTemplate, tools: Sequence[Any]) -> str:
    """The text that asks for a reply, at the end of a prompt."""
    prompt, history = template.text([USER], tools), _text(template, [USER], tools, reply=False)
    return prompt[len(history) :] if history is not None and prompt.startswith(history) else ""


def shared(one: str, other: str) -> str:
    """The common beginning of two texts."""
    size = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:size]


def common_prefix(one: str, other: str) -> int:
    """Length of the common beginning, back to the start of a tag that it cuts."""
    size = len(shared(one, other))
    cut = CUT_TAG.search(one, max(0, size - 40), size) if size < min(len(one), len(other)) else None
    return size if cut is None else cut.start()


def _frames(template: ChatTemplate, tools: Sequence[Any]) -> Frames:
    prompt = template.text([USER], tools)
    reply = {"role": "assistant", "content": REPLY}
    last = _text(template, [USER, reply], tools, reply=False) or ""
    if REPLY not in last:
        return Frames()
    lead = last[common_prefix(prompt, last) : last.rindex(REPLY)]
    tail = last.rpartition(REPLY)[2]
    reasoning = _reasoning(template, tools, prompt)
    if reasoning is not None:
        lead = _without(lead, reasoning)
    content_end = ""
    tags = TAG.findall(tail)
    if len(tags) > 1 and lead.strip() and tail.startswith(tags[0]):
        content_end, tail = tags[0], tail[len(tags[0]) :]
    asked = _text(template, [USER, reply, USER], tools)
    later = "" if asked is None or REPLY not in asked else _mark(asked.rpartition(REPLY)[2].removeprefix(content_end))
    closing = _mark(tail)
    return Frames((lead, content_end), reasoning, closing, later if closing else "")


def _mark(tail: str) -> str:
    """The end of a turn at the start of a text: a tag, with the whitespace around it."""
    match = re.match(r"\s*(<[^<>\n]+>|\[/?[A-Z_]+\])?\s*", tail)
    return match[0] if match is not None and match[1] else ""


def _reasoning(template: ChatTemplate, tools: Sequence[Any], prompt: str) -> tuple[str, str] | None:
    """The frame of reasoning, in history or (DeepSeek R1) in the prompt and the template's own text alone."""
    if template.accepts.reasoning_key is not None:
        plain = {"role": "assistant", "content": REPLY, "reasoning_content": THOUGHT}
        asks = {"role": "assistant", "content": REPLY, "reasoning_content": THOUGHT, "tool_calls": [call()]}
        for messages, given in (([USER, plain], tools), ([USER, asks, _result()], TOOLS)):
            text = _text(template, messages, given, reply=False)
            base = _text(template, [USER], given)
            if text is None or base is None or THOUGHT not in text:
                continue
            at = text.index(THOUGHT)
            opening = re.search(r"\n?(<[^<>\n]+>|\[[A-Z]+\])(\w*<[^<>\n]+>|\w*)\s*$", text[:at])
            after = text[at + len(THOUGHT) :]
            stop = after.find(REPLY)
            if stop < 0:
                stop = len(after)
            closing = re.match(r"\s*(<[^<>\n]+>|\[/[A-Z]+\])\s*", after[:stop])
            header = _header(template, given)
            between = after[:stop] if header.strip() and header.strip() in after[:stop] else (closing[0] if closing else after[:stop])
            return (opening[0] if opening else "", between)
    sources = "".join(template.sources.values())
    return ("<think>\n", "\n</think>\n\n") if "</think>" in sources else None


def _without(lead: str, reasoning: tuple[str, str]) -> str:
    """The text before content, without an empty frame of reasoning."""
    for frame in (reasoning[0] + reasoning[1], reasoning[0].strip() + reasoning[1].strip()):
        if frame.strip() and frame in lead:
            lead = lead.replace(frame, "", 1)
    return re.sub(loose_empty(reasoning), "", lead, count=1) if lead.strip() else ("" if not lead.strip() else lead)


def loose_empty(reasoning: tuple[str, str]) -> str:
    """A pattern for a frame of reasoning without any."""
    return r"\s*" + re.escape(reasoning[0].strip()) + r"\s*" + re.escape(reasoning[1].strip()) + r"\s*"


def _calls(template: ChatTemplate, frames: Frames) -> tuple[CallFormat, str] | None:
    """The format of calls and the text after them, from renderings of none, one and two arguments, and of two calls."""
    one = _call_text(template, frames, [call()])
    if one is None:
        return None
    body, closing = one
    name = body.find(NAMES[0])
    if name < 0 or VALUES["agl_key_a"] not in body:
        return None
    two = _call_text(template, frames, [call(0), call(1)])
    pair = None if two is None or NAMES[1] not in two[0] or two[0].find(NAMES[0]) < 0 else two[0]
    none = _call_text(template, frames, [call(0, {})])
    made = _object(body, pair) or _named(body, pair, none[0] if none is not None else None)
    if made is None:
        return None
    last = body.rindex(VALUES["agl_key_b"]) + len(VALUES["agl_key_b"])
    if made.kind == "tagged" and not _quotes_nothing(template, frames, made):
        return None
    return replace(made, value_tail=body[last:]), closing


def _quotes_nothing(template: ChatTemplate, frames: Frames, made: CallFormat) -> bool:
    """Whether numbers stand between the same marks as texts."""
    number = _call_text(template, frames, [call(0, {"agl_key_a": 4711, "agl_key_b": VALUES["agl_key_b"]})])
    return number is not None and f"{made.argument[1]}4711{made.argument[2]}" in number[0]


def _call_text(template: ChatTemplate, frames: Frames, calls: list[dict[str, Any]]) -> tuple[str, str] | None:
    """(the reply with these calls, the text after it)"""
    prompt = _text(template, [USER], TOOLS)
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    results = [_result(number) for number in range(len(calls))]
    last, followed = _text(template, [USER, message], TOOLS, reply=False), _text(template, [USER, message, *results], TOOLS)
    if prompt is None or followed is None:
        return None
    body = followed[common_prefix(prompt, followed) :]
    values = json.loads(calls[-1]["function"]["arguments"])
    at = body.find(calls[-1]["function"]["name"])
    if at < 0 or followed.find(USER["content"]) > len(followed) - len(body):
        return None
    for value in values.values():
        at = max(at, body.find(str(value), at) + len(str(value)))
    mark = frames.closing.strip()
    stop = body.find(mark, at) if mark else -1
    if stop >= 0:
        body, closing = body[:stop], _mark(body[stop:])
        if frames.closing[:1].isspace() and body.endswith(frames.closing[:1]):
            body, closing = body[:-1], frames.closing[:1] + closing
    else:  # the end of a turn is the next one's beginning, or another mark
        name = calls[-1]["function"]["name"]
        ends = shared(*(text[text.find(name, common_prefix(prompt, text)) :] for text in (last or "", followed)))
        header = TAG.match(_header(template, TOOLS).strip())
        if header is not None:
            ends = ends.partition(header[0])[0]
        stop = body.find(name) + len(ends) if ends else body.find(RESULT)
        body, closing = body[:stop], ""
    if frames.reasoning is not None:
        body = re.sub("^" + loose_empty(frames.reasoning), "", body, count=1)
    return body.lstrip("\n"), closing


def _objects(body: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(start, end, value) of the JSON objects in a text that name a tool."""
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
    at = body.index(NAMES[0])
    opening = body.find("{", at) if isinstance(value[arguments_key], dict) else body.find('"{', at)
    after_name = body[at + len(NAMES[0]) : opening] if opening >= 0 else ""
    between, before, after = None, body[:start], body[stop:]
    found = [] if pair is None else [item for item in _objects(pair) if set(NAMES) & set(map(str, item[2].values()))]
    if pair is not None and len(found) == 2:
        before, between, after = pair[: found[0][0]], pair[found[0][1] : found[1][0]], pair[found[1][1] :]
    as_text = isinstance(value[arguments_key], str)
    return CallFormat(
        "object", before, between, after, body[:at], after_name, name_key=name_key, arguments_key=arguments_key, arguments_as_text=as_text
    )


def _named(body: str, pair: str | None, none: str | None) -> CallFormat | None:
    """Calls whose name stands before the arguments."""
    at = body.index(NAMES[0])
    stop = at + len(NAMES[0])
    key, value = body.find("agl_key_a", stop), body.find("aglvalue1", stop)
    if key < 0 or value < key:
        return None
    arguments = next(((start, end) for start, end, found in _objects(body) if found == VALUES and start >= stop), None)
    if arguments is not None:
        made = CallFormat("header", body[:at], None, body[arguments[1] :], body[:at], body[stop : arguments[0]])
    elif body[stop] == "(" and (closing := body.find(")", value)) > 0:
        made = CallFormat("python", body[:at], None, body[closing + 1 :], body[:at], "(")
    else:
        tagged = _tagged(body, none, at, stop)
        if tagged is None:
            return None
        made = tagged
    if pair is None or pair.find(NAMES[1]) < 0:
        return made
    second = pair.index(NAMES[1])
    end = {"header": lambda: arguments[1] - at if arguments else 0, "python": lambda: body.find(")", value) + 1 - at}.get(
        made.kind, lambda: len(body) - len(made.after) - at
    )()
    first = pair.index(NAMES[0])
    between = pair[first + end : second]
    numbered = made.kind == "header" and not pair[second + len(NAMES[1]) :].startswith(made.name_suffix)
    return replace(made, before=pair[:first], between=between, numbered=numbered)


def _tagged(body: str, none: str | None, at: int, stop: int) -> CallFormat | None:
    key_a, value_a = body.index("agl_key_a", stop), body.index("aglvalue1", stop)
    key_b, value_b = body.find("agl_key_b", value_a), body.find("aglvalue2", value_a)
    if key_b < 0 or value_b < key_b:
        return None
    to_first, middle = body[stop:key_a], body[key_a + len("agl_key_a") : value_a]
    to_next, rest = body[value_a + len("aglvalue1") : key_b], body[value_b + len("aglvalue2") :]
    empty = none[none.index(NAMES[0]) + len(NAMES[0]) :] if none is not None and NAMES[0] in none else None
    size = 0
    if empty is not None:
        size = len(shared(rest[::-1], empty[::-1]))
        while size and len(rest) - size > 0 and not rest[len(rest) - size :].lstrip().startswith(("<", "[", "}", "]")):
            size -= 1
    closing = shared(rest[: len(rest) - size] or rest, to_next) or rest[: len(rest) - size]
    opening = to_next[len(closing) :]
    head = to_first.removesuffix(opening) if opening and to_first.endswith(opening) else to_first
    if not (closing.strip() and middle.strip()):
        return None
    return CallFormat("tagged", body[:at], None, rest[len(closing) :], body[:at], head, argument=(opening, middle, closing))
