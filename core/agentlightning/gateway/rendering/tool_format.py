"""The format in which a model writes tool calls, learned from a rendering of marked calls, and the reading of replies in it.

Every format that templates write is one of four kinds. `{core}` is the part between the marks:

    object    {"name": "f", "arguments": {...}}          Hermes, Qwen, Llama 3, Mistral, Granite
    header    f<mark>{...}                               DeepSeek, Kimi, Functionary, Devstral
    tagged    f<mark>key<mark>value<mark>                Qwen3-Coder, GLM, MiniMax M2
    python    f(key='value')                             Llama 3.2, LFM2
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from agentlightning.gateway.rendering.tool_text import End, ToolCall, json_text

Kind: TypeAlias = Literal["object", "header", "tagged", "python"]
NAME = re.compile(r"[A-Za-z_][\w.\-]*")


class Broken(Exception):
    """A call that cannot be read, and why."""


@dataclass(frozen=True, slots=True)
class Read:
    """A reply, read."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    problem: str | None = None
    """Why a part that looks like a call is text."""


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One format. The texts of marks are as the template writes them; reading ignores their whitespace."""

    kind: Kind
    before: str
    """Before the first core. Blank: nothing marks a call, so only a whole reply can be one."""
    between: str | None
    """Between two cores. None: a reply has at most one call."""
    after: str
    """After the last core."""
    name_prefix: str
    """The reply up to the name of its tool."""
    name_suffix: str
    """From the name to the arguments."""
    numbered: bool = False
    """The marks after a name contain the number of the call."""
    name_key: str = "name"
    arguments_key: str = "arguments"
    arguments_as_text: bool = False
    argument: tuple[str, str, str] = ("", "", "")
    """Tagged: before a key, between key and value, after a value."""
    header: str = ""
    """The header of a further message in the same reply, where a call may be one."""
    channel: bool = False
    """Whether a channel stands in such a header, before or after the name of the tool."""
    value_tail: str = ""
    """The text that the template writes from the last value to the end of the calls."""

    def prefill(self, tool: str | None) -> str:
        """The text that makes a reply a call of this tool; None: of any tool."""
        return self.name_prefix if tool is None else f"{self.name_prefix}{tool}{self.name_suffix}"

    def example(self) -> str:
        """A call, to show a model whose template shows no tools."""
        return f"{self.prefill('tool')}{{...}}{self.after}" if self.kind != "python" else f"{self.before}tool(key=value){self.after}"

    def read(self, text: str, tools: Sequence[Mapping[str, Any]], *, end: End = "whole") -> Read:
        """Content and calls of a reply, or of its beginning. A broken call stays text."""
        if not tools:
            return Read(text)
        offered = {tool["name"]: tool for tool in (tool.get("function") or tool for tool in tools)}
        content, calls, problem, position = "", list[ToolCall](), None, 0
        while True:
            start = self._start(text, position)
            if start is None:
                break
            section, first = start
            try:
                found, stop = self._section(text, first, offered, end)
            except Broken as broken:
                if end == "open":
                    return Read((content + text[position:section]).rstrip(), tuple(calls))
                problem = str(broken)
                content, position = content + text[position : max(first, position + 1)], max(first, position + 1)
                continue
            content, position = content + text[position:section], stop
            calls += found
        rest = text[position:]
        if end == "open":
            rest = rest[: len(rest) - self._held(rest, bool(content or calls))]
        content = content + rest
        if calls:
            return Read(content.strip() if content.strip() else "", tuple(calls), problem)
        return Read(content.rstrip() if end == "open" else content, (), problem or self._unmarked(text, offered))

    def _unmarked(self, text: str, offered: Mapping[str, Any]) -> str | None:
        """What a reply lacks that has the JSON of a call alone, such as in a code block."""
        if self.kind != "object" or not self.before.strip():
            return None
        names = "|".join(map(re.escape, offered))
        match = re.search(rf'\{{\s*"{re.escape(self.name_key)}"\s*:\s*"({names})"', text)
        return None if match is None else f"the JSON of a call of {match[1]} lacks the mark {self.before.strip()!r} of this model"

    def _start(self, text: str, position: int) -> tuple[int, int] | None:
        """(where the marks begin, where the first core begins)"""
        if self.before.strip():
            lead = rf"(?:{re.escape(self.header)})?(?:<\|?channel\|?>\w+\s*)?" if self.header else ""
            match = re.compile(lead + loose(self.before)).search(text, position)
            return None if match is None else (match.start(), match.end())
        if position or not text.strip():
            later = re.compile(loose(self.between)).search(text, position) if self.between and self.between.strip() else None
            return None if later is None else (later.start(), later.end())
        first = len(text) - len(text.lstrip())
        starts = text[first] == "{" if self.kind == "object" else NAME.match(text, first) is not None
        return (0, first) if starts else self._start(text, first + 1)

    def _section(self, text: str, position: int, offered: Mapping[str, Any], end: End) -> tuple[list[ToolCall], int]:
        """The calls from the first core on, and where their marks end."""
        calls: list[ToolCall] = []
        after = re.compile(r"\s*" + loose(self.after))
        between = None if self.between is None else re.compile(r"\s*" + loose(self.between))
        while True:
            call, position = self._core(text, position, offered)
            calls.append(call)
            following = None if between is None else between.match(text, position)
            closing, rest = after.match(text, position), text[position:].strip()
            if following is not None and (self.between or "").strip():
                position = following.end()
            elif closing is not None and self.after.strip():
                return calls, closing.end()
            elif following is not None and self._starts_core(text, following.end(), offered):
                position = following.end()
            elif not self.after.strip() and (self.before.strip() or not rest):
                return calls, position
            elif end == "whole" and "".join(self.after.split()).startswith("".join(rest.split())):
                return calls, len(text)  # the end mark of the turn replaced the rest of these marks
            else:
                raise Broken(f"{rest[:20]!r} follows a tool call, and its marks end with {self.after.strip()!r}")

    def _starts_core(self, text: str, position: int, offered: Mapping[str, Any]) -> bool:
        return text.startswith("{", position) if self.kind == "object" else any(text.startswith(name, position) for name in offered)

    def _core(self, text: str, position: int, offered: Mapping[str, Any]) -> tuple[ToolCall, int]:
        if self.kind == "object":
            return self._object(text, position, offered)
        match = NAME.match(text, position)
        names = sorted((name for name in offered if text.startswith(name, position)), key=len, reverse=True)
        if not names:
            raise Broken(f"{match[0] if match else text[position : position + 20]!r} is not a tool of this request")
        name = names[0]
        position += len(name)
        if self.kind == "header":
            return self._header(text, position, name)
        return self._python(text, position, name) if self.kind == "python" else self._tagged(text, position, name, offered[name])

    def _object(self, text: str, position: int, offered: Mapping[str, Any]) -> tuple[ToolCall, int]:
        value, position = _json_at(text, position)
        name = value.get(self.name_key)
        if name not in offered:
            raise Broken(f"the tool call has {self.name_key} {name!r}, and the request offers {', '.join(offered)}")
        return ToolCall(str(name), _arguments(value.get(self.arguments_key), str(name))), position

    def _header(self, text: str, position: int, name: str) -> tuple[ToolCall, int]:
        pattern = r"\s*" + loose(self.name_suffix, numbered=self.numbered)
        if self.channel:  # models vary the words of this header, and its last mark stays
            pattern = r"[^{]*?" + loose("<" + self.name_suffix.rpartition("<")[2])
        match = re.compile(pattern).match(text, position)
        if match is None:
            raise Broken(f"the call of {name} lacks {self.name_suffix.strip()!r} after the name")
        value, position = _json_at(text, match.end())
        return ToolCall(name, json_text(value)), position

    def _python(self, text: str, position: int, name: str) -> tuple[ToolCall, int]:
        stop = _bracketed(text, position)
        if stop is None:
            raise Broken(f"the brackets of the call of {name} are not closed")
        try:
            expression: Any = ast.parse(f"f{text[position:stop]}", mode="eval").body
            if expression.args or any(keyword.arg is None for keyword in expression.keywords):
                raise Broken(f"the call of {name} has an argument without a name")
            values = {keyword.arg: _literal(keyword.value) for keyword in expression.keywords}
        except (SyntaxError, ValueError) as error:
            raise Broken(f"the arguments of {name} are not Python values: {error}") from error
        return ToolCall(name, json_text(values)), stop

    def _tagged(self, text: str, position: int, name: str, tool: Mapping[str, Any]) -> tuple[ToolCall, int]:
        opening, middle, closing = self.argument
        schema = cast("Mapping[str, Any]", tool.get("parameters") or {})
        properties = cast("Mapping[str, Any]", schema.get("properties") or {})
        head = re.compile(r"\s*" + loose(self.name_suffix)).match(text, position)
        if head is None:
            raise Broken(f"the call of {name} lacks {self.name_suffix.strip()!r} after the name")
        position, values = head.end(), dict[str, Any]()
        key = re.compile(r"\s*" + loose(opening) + r"(?P<key>[^<>\[\]\n]+?)" + r"\s*" + loose(middle).removesuffix(r"\s*"))
        while (match := key.match(text, position)) is not None:
            stop = text.find(closing.strip() or closing, match.end())
            if stop < 0:
                raise Broken(f"the argument {match['key']} of {name} has no end")
            lead, tail = _blanks(middle, back=True), _blanks(closing, back=False)
            value = text[match.end() : stop].removeprefix(lead).removesuffix(tail)
            values[match["key"].strip()] = typed(value, properties.get(match["key"].strip()))
            position = stop + len(closing.strip() or closing)
        return ToolCall(name, json_text(values)), position

    def _held(self, text: str, begun: bool) -> int:
        """Length of a text end that may begin a call."""
        mark = self.before.strip()
        if not mark:
            stripped = text.lstrip()
            starts = not stripped or stripped[0] == "{" if self.kind == "object" else True
            return len(text) if starts and not begun else 0
        mark = "".join(mark.split())
        for start in range(max(0, len(text) - len(self.before) - 8), len(text)):
            if text[start] == mark[0] and mark.startswith("".join(text[start:].split())):
                return len(text) - start
        return 0


def loose(text: str, *, numbered: bool = False) -> str:
    """A pattern for the same text with other whitespace; `numbered`: and with other numbers."""
    words = [re.escape(word) for word in text.split()]
    words = [re.sub(r"\d+", r"\\d+", word) for word in words] if numbered else words
    return r"\s*".join([*words, ""])


def typed(text: str, schema: Any) -> Any:
    """The value of an argument that is written as text, by the type in its schema."""
    types = cast("Mapping[str, Any]", schema).get("type") if isinstance(schema, Mapping) else None
    names = [types] if isinstance(types, str) else [str(name) for name in cast("list[Any]", types or [])]
    if names == ["string"]:
        return text
    stripped = text.strip()
    for read in (json.loads, ast.literal_eval):
        try:
            value: Any = read(stripped)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, str) and "string" not in names and names:
            continue
        if isinstance(value, (bool, int, float, list, dict, str)) or value is None:
            return text if isinstance(value, str) and stripped[:1] not in "\"'" else cast(Any, value)
    return {"true": True, "false": False, "null": None, "none": None}.get(stripped.lower(), text) if "string" not in names else text


def _json_at(text: str, position: int) -> tuple[dict[str, Any], int]:
    position += len(text[position:]) - len(text[position:].lstrip())
    try:
        value, stop = json.JSONDecoder(strict=False).raw_decode(text, position)
    except (ValueError, RecursionError) as error:
        raise Broken(f"the tool call is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Broken(f"the tool call is {str(value)[:40]!r} instead of a JSON object")
    return cast("dict[str, Any]", value), stop


def _arguments(value: Any, name: str) -> str:
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except ValueError as error:
            raise Broken(f"the arguments of {name} are not JSON: {error}") from error
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise Broken(f"the arguments of {name} are {str(value)[:40]!r} instead of a JSON object")
    return json_text(cast(Any, value))


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    return ast.literal_eval(node)


def _bracketed(text: str, position: int) -> int | None:
    """The end of the brackets that open here, past quoted text."""
    depth, quote, escaped = 0, "", False
    if text[position : position + 1] != "(":
        return None
    for i in range(position, len(text)):
        char = text[i]
        if quote:
            escaped, quote = (not escaped and char == "\\"), ("" if char == quote and not escaped else quote)
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth == 0:
                return i + 1
    return None


def _blanks(text: str, *, back: bool) -> str:
    return text[len(text.rstrip()) :] if back else text[: len(text) - len(text.lstrip())]
