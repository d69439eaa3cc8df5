"""Check the renderer on a folder of chat templates, and write the table of docs/models.md.

    python benchmarks/models/templates.py FOLDER [--write docs/models.md]

A template is a file `NAME.jinja`. Its tokenizer has one token a byte, and one for each mark in the template. Every cell is a check with
tokens: a prompt is compared with `apply_chat_template`, calls are written by the template and read back, and three turns are bridged.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentlightning.contracts.rendering import RenderingSettings
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.rendering.load import choose
from agentlightning.gateway.rendering.renderer import Conversation, Parsed
from agentlightning.gateway.rendering.template_renderer import TemplateRenderer
from agentlightning.gateway.rendering.tokens import Tokens
from agentlightning.gateway.rendering.tool_format import loose
from agentlightning.registry.registry import registry
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import Completion, Sampling, ints

HEADING = "## Chat templates"
COLUMNS = ("prompt", "tools", "call", "parallel", "3 turns", "stop", "errors")
MARK = re.compile(r"<\|[^<>|\n\s]*\|>|<\|\w+>|<\w+\|>|<｜[^<>｜\n]+｜>|</?[A-Za-z][\w:.]*>|\[/?[A-Z][A-Z_]+\]|<\|\"\|>|\[\|[^\[\]\n]+\|\]")
MORE_MARKS = ("<|im_end|>",)
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "search_flights",
            "description": "Find flights.",
            "parameters": {
                "type": "object",
                "properties": {
                    "origin": {"type": "string", "description": "A city."},
                    "passengers": {"type": "integer"},
                    "flexible": {"type": "boolean"},
                    "stops": {"type": "array", "items": {"type": "string"}},
                    "filters": {"type": "object", "properties": {"airline": {"type": "string"}}},
                },
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Compute.",
            "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
        },
    },
]
ARGUMENTS: list[dict[str, Any]] = [
    {"origin": "Zürich, CH", "passengers": 3, "flexible": True, "stops": ["a", "b"]},
    {"origin": 'she said "it\'s" {here}\nand [there] 😀', "filters": {"airline": "x, y"}, "flexible": False},
    {"origin": "3", "passengers": -1},
    {},
]
SECOND = {"expression": '3 + "4" * (2)'}
USER = {"role": "user", "content": "Find flights 😀"}
SYSTEM = {"role": "system", "content": "Be brief."}


@dataclass(slots=True)
class Row:
    """The results for one template."""

    name: str
    cells: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])

    @property
    def passes(self) -> bool:
        """Whether no check failed. A named limit of the template itself is no failure."""
        return not any(cell.startswith("no") for cell in self.cells.values())


class World:
    """One template with its tokenizer and renderers."""

    def __init__(self, source: str, folder: Path) -> None:
        tokenizer: Any = make_tokenizer(folder)
        tokenizer.add_special_tokens({"additional_special_tokens": sorted({*MARK.findall(source), *MORE_MARKS})})
        tokenizer.chat_template = source
        self.tokens, self.settings = Tokens(tokenizer), RenderingSettings()
        frames = TemplateRenderer(self.tokens, self.settings).traits.frames  # a generation_config.json names these marks
        ends = {mark.strip() for mark in (frames.closing, frames.call_closing)} - {""} or frames.next_turns
        self.eos = tuple(self.tokens.by_text[mark] for mark in ends if mark in self.tokens.by_text)
        self.renderer: Any = choose(self.tokens, self.settings, self.eos, registry())
        self.exact: Any = choose(self.tokens, RenderingSettings(history="exact"), self.eos, registry())

    def own(self, messages: Sequence[Any], tools: Sequence[Any]) -> list[int]:
        """The prompt of the tokenizer itself."""
        template: Any = self.renderer.template
        return list(
            self.tokens.tokenizer.apply_chat_template(
                template.prepared(messages, ()), tools=list(tools) or None, add_generation_prompt=True, return_dict=False
            )
        )

    def read(self, text: str, prompt: Sequence[int], *, end: Any = "whole", prefix: str = "") -> Parsed:
        """A reply of this text, read."""
        return self.renderer.parse(self.tokens.encode(text), text, ints(list(prompt)), TOOLS, prefix=prefix, end=end, hidden=None)


def call(number: int, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A tool call in OpenAI's form."""
    return {
        "id": f"call_{number}", "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
    }  # fmt: skip


def asks(*calls: dict[str, Any], content: str = "") -> dict[str, Any]:
    """An assistant message with tool calls."""
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def result(number: int, name: str, content: str) -> dict[str, Any]:
    """The result of a tool call."""
    return {"role": "tool", "tool_call_id": f"call_{number}", "name": name, "content": content}


LOOP: list[Any] = [
    asks(call(1, "search_flights", ARGUMENTS[0])),
    result(1, "search_flights", "[1, 2]"),
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Cheapest?"},
]


def check_prompt(world: World) -> str:
    """Prompts against the tokenizer's own, with and without a system message, tools and history."""
    for name, messages, tools in (
        ("a question", [USER], []),
        ("a system message", [SYSTEM, USER], []),
        ("tools", [SYSTEM, USER], TOOLS),
        ("history", [USER, *LOOP], TOOLS),
    ):
        if tools and world.renderer.tool_note:
            continue  # the template does not show them, or writes no calls: there is nothing to compare
        try:
            own = world.own(messages, tools)
        except Exception as error:  # templates raise whatever their operators raise
            if not tools:
                world.renderer.prompt(Conversation([USER], TOOLS))
                continue
            return f"no: the template raises {error}"
        if world.renderer.prompt(Conversation(messages, tools)) != own:
            return f"no: {name}"
    return "yes"


def check_tools(world: World) -> str:
    """Whether prompts describe the tools."""
    text = world.tokens.decode(world.renderer.prompt(Conversation([USER], TOOLS)))
    shown = all(word in text for word in ("search_flights", "calculator", "passengers"))
    if not shown:
        return "no"
    return "gateway" if world.renderer.tool_note else "yes"


def check_calls(world: World, *calls: dict[str, Any], content: str = "", thought: str = "") -> str:
    """Whether calls that the template writes are read back, whole and as a stream."""
    conversation = Conversation([USER], TOOLS)
    message = {**asks(*calls, content=content), **({"reasoning_content": thought} if thought else {})}
    prompt = world.renderer.prompt(conversation)
    text = world.renderer.written(conversation, message)
    if text is None:
        return "not written"
    parsed = world.read(text, prompt)
    want = [(item["function"]["name"], json.loads(item["function"]["arguments"])) for item in calls]
    got = [(item.name, json.loads(item.arguments)) for item in parsed.calls]
    if json.dumps(got, sort_keys=True) != json.dumps(want, sort_keys=True):
        return f"read {got} from {text!r}: {parsed.problem}"
    if parsed.content.strip() not in ("", content):
        return f"read the content {parsed.content!r} from {text!r}"
    if thought and thought in text and parsed.reasoning != thought:
        return f"read the reasoning {parsed.reasoning!r} from {text!r}"
    sent = ""
    for size in range(len(text) + 1):
        shown = world.read(text[:size], prompt, end="open").content
        if not shown.startswith(sent):
            return f"the stream shrinks at {text[:size][-40:]!r}"
        sent = shown
    return "" if parsed.content.startswith(sent) else f"streams {sent!r} for {parsed.content!r}"


def check_call(world: World) -> str:
    """Single calls: typed and nested arguments, after text, after thinking, forced."""
    for arguments in ARGUMENTS:
        if problem := check_calls(world, call(1, "search_flights", arguments)):
            return f"no: {problem}"
    for content, thought in (("I will look.", ""), ("", "I should look.")):
        if problem := check_calls(world, call(1, "calculator", SECOND), content=content, thought=thought):
            return f"no: {problem}"
    conversation = Conversation([USER], TOOLS)
    prompt = world.renderer.prompt(conversation)
    text = world.renderer.written(conversation, asks(call(1, "calculator", SECOND))) or ""
    for name in ("calculator", None):
        try:
            prefix = world.renderer.prefill(name, conversation)
        except Refused:
            continue
        start = re.search(loose(prefix), text)
        if start is None:
            return f"no: a forced call begins with {prefix!r} instead of {text!r}"
        parsed = world.read(text[start.end() :], prompt, prefix=prefix)
        if [(item.name, json.loads(item.arguments)) for item in parsed.calls] != [("calculator", SECOND)]:
            return f"no: a forced call is read as {parsed.calls} from {text!r}"
    return "yes"


def check_parallel(world: World) -> str:
    """Two calls in one reply."""
    calls = (call(1, "search_flights", ARGUMENTS[0]), call(2, "calculator", SECOND))
    try:
        problem = check_calls(world, *calls)
    except Refused as error:
        return f"one call ({error.args[0].partition(': ')[2].partition('. Change')[0][:60]})"
    one = getattr(world.renderer.format, "between", "") is None
    return "one call" if problem and one else f"no: {problem}" if problem else "yes"


def check_bridge(world: World) -> str:
    """Three turns: a tool call and two answers, each after thinking where the model thinks. A prompt starts with the sampled tokens."""
    causes = turns(world, world.renderer)
    if isinstance(causes, str):
        return f"no: {causes}"
    if all(cause == "bridged" for cause in causes):
        return "yes"
    exact = turns(world, world.exact, compare=False)
    if isinstance(exact, str) or any(cause != "bridged" for cause in exact):
        return f"no: with exact history {exact}"
    return next(cause for cause in causes if cause != "bridged")


def turns(world: World, renderer: Any, *, compare: bool = True) -> list[str] | str:
    """The context of three calls, or a problem. `compare`: with the template's rendering."""
    conversation: list[Any] = [USER]
    prompt, causes = renderer.prompt(Conversation(conversation, TOOLS)), list[str]()
    thought = {"reasoning_content": "Hm."} if renderer.traits.frames.reasoning is not None else {}
    steps: list[tuple[dict[str, Any], list[Any]]] = [
        ({**LOOP[0], **thought}, [LOOP[1]]),
        ({**LOOP[2], **thought}, [LOOP[3]]),
        ({"role": "assistant", "content": "The first.", **thought}, [{"role": "user", "content": "Thanks"}]),
    ]
    for message, new in steps:
        text = renderer.written(Conversation(conversation, TOOLS), message)
        if text is None:
            return f"the reply {message} is not written"
        ids = [*world.tokens.encode(text), *end_of(world, renderer, conversation, message, new)]
        reply = Completion(
            call_id="c", attempt_id="a", prompt_ids=ints(prompt), response_ids=ints(ids), logprobs=None, versions=ints([0] * len(ids)),
            sampling=Sampling(), finish_reason="stop",
        )  # fmt: skip
        parsed = world.read(text, prompt)
        if parsed.content.strip() != message["content"] or (parsed.reasoning or "").strip() != ("Hm." if "Hm." in text else ""):
            return f"the reply {text!r} is read as {parsed}"
        conversation = [*conversation, message, *new]
        bridge = renderer.bridge(reply, Conversation(conversation, TOOLS), len(conversation) - len(new))
        causes.append(bridge.cause)
        full = renderer.prompt(Conversation(conversation, TOOLS))
        before, prompt = [*prompt, *ids], full
        if bridge.ids is not None:
            prompt = [*before, *bridge.ids]
            if compare and (problem := difference(world, renderer, prompt, full)):
                return problem
    return causes


def end_of(world: World, renderer: Any, conversation: Sequence[Any], message: Any, new: Sequence[Any]) -> list[int]:
    """The end mark of this reply: the one that the template writes, else the first."""
    calls = bool(message.get("tool_calls"))
    text = renderer.template.text([*conversation, message if calls else {**message, "content": "aglend"}, *new], TOOLS)
    after = text.rpartition(USER["content"])[2].partition("search_flights")[2] if calls else text.rpartition("aglend")[2]
    marks = {id: after.find(world.tokens.decode([id])) for id in renderer.stop_ids}
    written = [id for id, at in marks.items() if at >= 0]
    return [min(written, key=lambda id: marks[id])] if written else list(renderer.stop_ids[:1])


def difference(world: World, renderer: Any, bridged: list[int], rendered: list[int]) -> str:
    """The first difference between a bridged prompt and a rendered one, beyond frames of reasoning and whitespace."""
    first, second = (plain(renderer, world.tokens.decode(ids)) for ids in (bridged, rendered))
    if first == second:
        return ""
    at = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    return f"bridged {first[max(0, at - 30) : at + 50]!r}, rendered {second[max(0, at - 30) : at + 50]!r}"


def plain(renderer: Any, text: str) -> str:
    """A text without reasoning, frames of reasoning and whitespace."""
    frames = renderer.traits.frames
    for mark in (*(frames.reasoning or ()), *frames.content):
        if mark.strip():
            text = text.replace(mark.strip(), "")
    if frames.closing.strip() != frames.later_closing.strip() or not frames.closing.strip():  # the sampled end stays, as it was sampled
        text = text.replace(frames.later_closing.strip() or "\0", "")
        for mark in (frames.closing.strip(), "<|im_end|>"):
            text = text.replace(mark or "\0", "")
    return "".join(text.replace("Hm.", "").split())


def check_stop(world: World) -> str:
    """Whether the mark at the end of a turn ends a reply, with and without `generation_config.json`."""
    ids, strings = world.renderer.stop_ids, world.renderer.stop_strings
    ends = {mark.strip() for mark in (world.renderer.traits.frames.closing, world.renderer.traits.frames.call_closing)} - {""}
    written = [mark for mark in ends if world.tokens.by_text.get(mark) in ids or mark in strings]
    return "yes" if written or (ids and not ends) else f"no: {sorted(ends)} ends no reply"


def check_errors(world: World) -> str:
    """Odd conversations are rendered, or refused in the template's words. Nothing else is raised."""
    reply = {"role": "assistant", "content": "a"}
    odd: list[list[Any]] = [
        [SYSTEM], [USER, USER], [reply], [reply, USER], [SYSTEM, USER, SYSTEM, USER], [USER, result(9, "calculator", "4")],
        [USER, reply, reply, USER], [USER, {"role": "function", "name": "f", "content": "x"}], [{"role": "user", "content": ""}],
        [USER, asks(call(1, "calculator", SECOND)), USER], [{"role": "nobody", "content": "x"}],
        [USER, asks({"id": "1", "type": "function", "function": {"name": "calculator", "arguments": "{not JSON"}}), LOOP[1]],
    ]  # fmt: skip
    for messages in odd:
        for tools in ([], TOOLS):
            try:
                world.renderer.prompt(Conversation(messages, tools))
            except Refused:
                continue
            except Exception as error:
                return f"no: {messages} raises {error!r}"
    return "yes"


CHECKS: dict[str, Callable[[World], str]] = dict(
    zip(COLUMNS, (check_prompt, check_tools, check_call, check_parallel, check_bridge, check_stop, check_errors), strict=True)
)


def check_template(path: Path) -> Row:
    """Every check on one template."""
    row = Row(path.stem)
    with tempfile.TemporaryDirectory() as folder:
        try:
            world = World(path.read_text(encoding="utf-8"), Path(folder))
        except Refused as error:
            row.cells = dict.fromkeys(COLUMNS, "no")
            row.notes.append(str(error))
            return row
        for name, check in CHECKS.items():
            try:
                answer = check(world)
            except Exception as error:  # a fault of one check leaves the others
                answer = f"no: {type(error).__name__}: {error}"
            cell, _, reason = answer.partition(": ") if answer.startswith("no") else answer.partition(" (")
            row.cells[name] = cell
            if reason:
                row.notes.append(f"{name}: {reason.removesuffix(')')}")
    if world.renderer.tool_note:
        row.notes.append(world.renderer.tool_note.partition(". ")[0])
    return row


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown."""
    lines = [f"| template | {' | '.join(COLUMNS)} | note |", f"|---|{'---|' * (len(COLUMNS) + 1)}"]
    for row in rows:
        note = "; ".join(row.notes).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {row.name} | {' | '.join(row.cells[name] for name in COLUMNS)} | {note} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="A folder of .jinja files")
    parser.add_argument("--only", default="", help="Check the templates whose name contains this")
    parser.add_argument("--write", type=Path, help="Replace the table in this page")
    options = parser.parse_args()
    rows = [check_template(path) for path in sorted(options.folder.glob("*.jinja")) if options.only in path.name]
    if options.write is None:
        print(table(rows))
    else:
        page = options.write.read_text(encoding="utf-8") if options.write.exists() else ""
        before = page.partition(HEADING)[0].rstrip()
        options.write.write_text(f"{before}\n\n{HEADING}\n\n{INTRODUCTION}\n\n{table(rows)}\n".lstrip(), encoding="utf-8")
    print(f"{sum(row.passes for row in rows)} of {len(rows)} templates pass every check.")


INTRODUCTION = """Generated by `python benchmarks/models/templates.py FOLDER --write docs/models.md`. Every template runs with a byte
tokenizer and the special tokens that it writes.

- **prompt**: the prompt ids equal the tokenizer's own, with a system message, tools, and history.
- **tools**: the prompt describes the tools. `gateway`: the gateway describes them, because the template does not.
- **call**, **parallel**: one call and two calls come back as written, whole and streamed. `one call`: the template allows one.
- **3 turns**: each prompt starts with the sampled tokens. `rewritten`: the template changes earlier turns, and `history = "exact"`
  bridges them.
- **stop**: the special token that ends a turn ends a reply.
- **errors**: unusual conversations are rendered, or refused with a 400."""

if __name__ == "__main__":
    logging.getLogger("agentlightning").setLevel(logging.ERROR)
    main()
