"""The format in which a model writes tool calls, learned from a rendering of marked calls, and the reading of replies in it.

Every format that templates write is one of five kinds:

    object    {"name": "f", "arguments": {...}}          Hermes, Qwen, Llama 3, Mistral, Granite
    header    f<mark>{...}                               DeepSeek, Kimi, Functionary, Devstral
    tagged    f<mark>key<mark>value<mark>                Qwen3-Coder, GLM, MiniMax M2
    python    f(key='value')                             Llama 3.2, LFM2
    quoted    f{key:<mark>value<mark>}                   Gemma 4
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from agentlightning.gateway.rendering.call_arguments import Broken, QuotedValues, as_object, json_at, keyword_arguments, typed
from agentlightning.gateway.rendering.tool_text import End, ToolCall, json_text

Kind: TypeAlias = Literal["object", "header", "tagged", "python", "quoted"]
NAME = re.compile(r"[A-Za-z_][\w.\-]*")
BARE = re.compile(r"\s*(?:```(?:json)?\s*)?")
"""The beginning of a reply that may be the JSON of a call and nothing else."""


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
    quote: str = ""
    """Quoted: before and after a text."""
    header: str = ""
    """The header of a further message in the same reply, where a call may be one."""
    channel: bool = False
    """Whether a channel stands in such a header, before or after the name of the tool."""
    inside: int = 0
    """Characters of `before` that stand before the content of the reply (Llama 4). 0: all of it follows the content."""
    value_tail: str = ""
    """The text that the template writes from the last value to the end of the calls."""

    def prefill(self, tool: str | None) -> str:
        """The text that makes a reply a call of this tool; None: of any tool."""
        return self.name_prefix if tool is None else f"{self.name_prefix}{tool}{self.name_suffix}"

    def example(self) -> str:
        """A call, to show a model whose template shows no tools."""
        return f"{self.prefill('tool')}{{...}}{self.after}" if self.kind != "python" else f"{self.before}tool(key=value){self.after}"

    def write(self, content: str, calls: Sequence[Mapping[str, Any]]) -> str:
        """A message with calls (OpenAI's form), where the template writes none. Objects and Python calls alone are written."""
        cores: list[str] = []
        for call in (call["function"] for call in calls):
            try:
                values: Any = as_object(call.get("arguments"), call["name"])
            except Broken:
                values = call["arguments"]
            if self.kind == "python" and isinstance(values, dict):
                cores.append(f"{call['name']}({', '.join(f'{key}={value!r}' for key, value in cast('dict[str, Any]', values).items())})")
            else:
                cores.append(json_text({self.name_key: call["name"], self.arguments_key: values}))
        section = f"{self.before}{(self.between or '').join(cores)}{self.after}"
        return f"{content}\n{section}" if content else section

    def read(self, text: str, tools: Sequence[Mapping[str, Any]], *, end: End = "whole") -> Read:
        """Content and calls of a reply, or of its beginning. A broken call stays text."""
        if not tools:
            return Read(text)
        offered = {tool["name"]: tool for tool in (tool.get("function") or tool for tool in tools)}
        if end == "open" and self._may_be_bare(text):
            return Read("")
        bare = self._bare(text, offered) if end != "open" else None
        if bare is not None:
            return Read("", (bare,))
        content, calls, problem, position = "", list[ToolCall](), None, 0
        while True:
            start = self._start(text, position)
            if start is None:
                break
            section, first, inner = start
            try:
                read_calls, stop = self._section(text, first, offered, end)
            except Broken as broken:
                marked = bool(self.before.strip()) or self._may_be_object(text[first:])
                if end == "open" and marked:
                    return Read((content + text[position:section]).rstrip(), tuple(calls))
                problem = str(broken) if marked else problem
                content, position = content + text[position : max(first, position + 1)], max(first, position + 1)
                continue
            content, position = content + text[position:section] + inner, stop
            calls += read_calls
        rest = text[position:]
        if end == "open":
            rest = rest[: len(rest) - self._held(rest, bool(content or calls))]
        content = content + rest
        if calls:
            return Read(content.strip() if content.strip() else "", tuple(calls), problem)
        return Read(content.rstrip() if end == "open" else content, (), problem or self._unmarked(text, offered))

    def _bare(self, text: str, offered: Mapping[str, Any]) -> ToolCall | None:
        """The call of a reply that is its JSON and nothing else, as small models write it: without marks, or in a code block."""
        try:
            call, stop = self._object(text, _bare_start(text), offered)
        except Broken:
            return None
        return call if text[stop:].strip() in ("", "```") else None

    def _may_be_bare(self, text: str) -> bool:
        """Whether a reply that begins like this may be the JSON of a call and nothing else."""
        rest = text[_bare_start(text) :]
        return not rest or "```json".startswith(text.strip()) or self._may_name(rest)

    def _unmarked(self, text: str, offered: Mapping[str, Any]) -> str | None:
        """What a reply lacks that has the JSON of a call among other text."""
        if self.kind != "object" or not self.before.strip():
            return None
        names = "|".join(map(re.escape, offered))
        match = re.search(rf'\{{\s*"{re.escape(self.name_key)}"\s*:\s*"({names})"', text)
        return None if match is None else f"the JSON of a call of {match[1]} lacks the mark {self.before.strip()!r} of this model"

    def _start(self, text: str, position: int) -> tuple[int, int, str] | None:
        """(where the marks begin, where the first core begins, content between the marks)"""
        if self.inside:
            opening, closing = loose(self.before[: self.inside]), loose(self.before[self.inside :])
            match = re.compile(f"{opening}(.*?){closing}", re.DOTALL).search(text, position)
            return None if match is None else (match.start(), match.end(), match[1])
        if self.before.strip():
            lead = rf"(?:{re.escape(self.header)})?(?:<\|?channel\|?>\w+\s*)?" if self.header else ""
            match = re.compile(lead + loose(self.before)).search(text, position)
            return None if match is None else (match.start(), match.end(), "")
        if self.between and self.between.strip() and position:
            later = re.compile(loose(self.between)).search(text, position)
            return None if later is None else (later.start(), later.end(), "")
        if self.kind == "object":  # text may come before it
            brace = text.find("{", position)
            return None if brace < 0 else (brace, brace, "")
        first = len(text) - len(text.lstrip())
        return (0, first, "") if position == 0 and NAME.match(text, first) is not None else None

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
        if self.kind == "quoted":
            value, position = QuotedValues(text, self.quote).object(position)
            return ToolCall(name, json_text(value)), position
        if self.kind == "python":
            return self._python(text, position, name, offered)
        return self._tagged(text, position, name, _properties(offered[name]))

    def _object(self, text: str, position: int, offered: Mapping[str, Any]) -> tuple[ToolCall, int]:
        value, position = json_at(text, position)
        name = value.get(self.name_key)
        if name not in offered:
            raise Broken(f"the tool call has {self.name_key} {name!r}, and the request offers {', '.join(offered)}")
        arguments = next((value[key] for key in (self.arguments_key, "arguments", "parameters") if key in value), None)
        return ToolCall(str(name), json_text(as_object(arguments, str(name)))), position

    def _header(self, text: str, position: int, name: str) -> tuple[ToolCall, int]:
        pattern = r"\s*" + loose(self.name_suffix, numbered=self.numbered)
        if self.channel:  # models vary the words of this header, and its last mark stays
            pattern = r"[^{]*?" + loose("<" + self.name_suffix.rpartition("<")[2])
        match = re.compile(pattern).match(text, position)
        if match is None:
            raise Broken(f"the call of {name} lacks {self.name_suffix.strip()!r} after the name")
        value, position = json_at(text, match.end())
        return ToolCall(name, json_text(value)), position

    def _python(self, text: str, position: int, name: str, offered: Mapping[str, Any]) -> tuple[ToolCall, int]:
        ends = [r"\s*$", *([r"\s*" + loose(self.after)] if self.after.strip() else [])]
        if self.between is not None:
            ends.append(r"\s*" + loose(self.between) + rf"(?:{'|'.join(map(re.escape, offered))})\(")
        try:
            values, stop = keyword_arguments(text, position, _properties(offered[name]), re.compile("|".join(ends)))
        except Broken as broken:
            raise Broken(f"the call of {name} is not readable: {broken}") from broken
        return ToolCall(name, json_text(values)), stop

    def _tagged(self, text: str, position: int, name: str, properties: Mapping[str, Any]) -> tuple[ToolCall, int]:
        opening, middle, closing = self.argument
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

    def _may_be_object(self, text: str) -> bool:
        """Whether a text without marks may become a call. Braces of other texts are not."""
        return self.kind != "object" or self._may_name(text)

    def _may_name(self, text: str) -> bool:
        """Whether a JSON object, or its beginning, may have the name of a tool."""
        start = re.match(r'\{\s*("[^"]*)?', text)
        return start is not None and (start.end() == len(text) or f'"{self.name_key}"' in text)

    def _held(self, text: str, begun: bool) -> int:
        """Length of a text end that may begin a call."""
        mark = self.before.strip()
        if self.inside and (opened := text.find(self.before[: self.inside].strip())) >= 0:
            return len(text) - opened
        if not mark:
            return len(text) if not begun and (self.kind != "object" or not text.strip()) else 0
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


def _bare_start(text: str) -> int:
    match = BARE.match(text)
    assert match is not None  # it matches an empty text
    return match.end()


def _properties(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    schema: Any = tool.get("parameters")
    properties: Any = cast("Mapping[str, Any]", schema).get("properties") if isinstance(schema, Mapping) else None
    return cast("Mapping[str, Any]", properties) if isinstance(properties, Mapping) else {}


def _blanks(text: str, *, back: bool) -> str:
    return text[len(text.rstrip()) :] if back else text[: len(text) - len(text.lstrip())]
