"""Reads the arguments of tool calls: JSON, Python's keyword arguments, values between other quote marks, and text typed by a schema."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, cast

QUOTES = "\"'"
CONSTANTS = {"true": True, "false": False, "null": None, "none": None}


class Broken(Exception):
    """A call that cannot be read, and why."""


def json_at(text: str, position: int) -> tuple[dict[str, Any], int]:
    """The JSON object that starts here, past whitespace, and its end. Raises `Broken`."""
    position += len(text[position:]) - len(text[position:].lstrip())
    try:
        value, stop = json.JSONDecoder(strict=False).raw_decode(text, position)
    except (ValueError, RecursionError) as error:
        raise Broken(f"the tool call is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Broken(f"the tool call is {str(value)[:40]!r} instead of a JSON object")
    return cast("dict[str, Any]", value), stop


def as_object(value: Any, name: str) -> dict[str, Any]:
    """Arguments as a mapping, from a mapping, JSON text or nothing. Raises `Broken`."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except ValueError as error:
            raise Broken(f"the arguments of {name} are not JSON: {error}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Broken(f"the arguments of {name} are {str(value)[:40]!r} instead of a JSON object")
    return cast("dict[str, Any]", value)


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
            return text if isinstance(value, str) and stripped[:1] not in QUOTES else cast(Any, value)
    return CONSTANTS.get(stripped.lower(), text) if "string" not in names else text


def keyword_arguments(text: str, position: int, properties: Mapping[str, Any], end: re.Pattern[str]) -> tuple[dict[str, Any], int]:
    """The keyword arguments of the Python call whose bracket opens here, and the end of the bracket. Raises `Broken`.

    Templates write quoted texts without escaping them. Where Python cannot read the arguments, they are split at the parameters of the
    schema, up to a bracket after which `end` matches.
    """
    stop = _bracketed(text, position)
    reason = "the brackets are not closed"
    if stop is not None and end.match(text, stop) is not None:
        try:
            return _python_values(text[position:stop]), stop
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            reason = str(error)
    if not text.startswith("(", position):
        raise Broken("no bracket follows the name")
    for bracket in re.finditer(r"\)", text[position:]):
        if end.match(text, position + bracket.end()) is not None:
            values = _split_values(text[position + 1 : position + bracket.start()], properties)
            if values is not None:
                return values, position + bracket.end()
    raise Broken(f"its arguments are not Python values: {reason}")


def _python_values(text: str) -> dict[str, Any]:
    expression: Any = ast.parse(f"f{text}", mode="eval").body
    if expression.args or any(keyword.arg is None for keyword in expression.keywords):
        raise ValueError("an argument has no name")
    return {keyword.arg: _literal(keyword.value) for keyword in expression.keywords}


def _literal(node: ast.expr) -> Any:
    """Python's literals, with JSON's constants at any depth."""
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key is not None}
    value = ast.literal_eval(node)
    json.dumps(value)  # sets and bytes are no arguments
    return value


def _split_values(text: str, properties: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments split at the names of parameters. None: they are not complete."""
    names = "|".join(map(re.escape, properties)) or r"(?!)"
    starts = list(re.finditer(rf"(?:^|,)\s*({names})\s*=\s*", text))
    if not starts or text[: starts[0].start()].strip():
        return None
    values: dict[str, Any] = {}
    for number, start in enumerate(starts):
        stop = starts[number + 1].start() if number + 1 < len(starts) else len(text)
        value = text[start.end() : stop].strip()
        if value[:1] in QUOTES:
            if len(value) < 2 or value[-1] != value[0]:
                return None
            values[start[1]] = value[1:-1]
        else:
            values[start[1]] = typed(value, {"type": "number"})
            if isinstance(values[start[1]], str):
                return None
    return values


def _bracketed(text: str, position: int) -> int | None:
    """The end of the brackets that open here, past quoted text."""
    depth, quote, escaped = 0, "", False
    if text[position : position + 1] != "(":
        return None
    for i in range(position, len(text)):
        char = text[i]
        if quote:
            escaped, quote = (not escaped and char == "\\"), ("" if char == quote and not escaped else quote)
        elif char in QUOTES:
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth == 0:
                return i + 1
    return None


class QuotedValues:
    """JSON with bare keys and other quote marks: `{key:<|"|>text<|"|>,other:3}`."""

    def __init__(self, text: str, quote: str) -> None:
        self._text, self._quote = text, quote
        self._bare = re.compile(r"[^,:\[\]{}]+")

    def object(self, position: int) -> tuple[dict[str, Any], int]:
        """The object that opens here, and its end. Raises `Broken`."""
        fields: dict[str, Any] = {}
        position = self._expect(position, "{")
        while not self._text.startswith("}", position):
            key, position = self._string(position) if self._text.startswith(self._quote, position) else self._word(position)
            fields[key], position = self._value(self._expect(position, ":"))
            if not self._text.startswith("}", position):
                position = self._expect(position, ",")
        return fields, position + 1

    def _value(self, position: int) -> tuple[Any, int]:
        if self._text.startswith(self._quote, position):
            return self._string(position)
        if self._text.startswith("{", position):
            return self.object(position)
        if self._text.startswith("[", position):
            return self._list(position)
        word, position = self._word(position)
        return typed(word, None), position

    def _list(self, position: int) -> tuple[list[Any], int]:
        items: list[Any] = []
        position = self._expect(position, "[")
        while not self._text.startswith("]", position):
            item, position = self._value(position)
            items.append(item)
            if not self._text.startswith("]", position):
                position = self._expect(position, ",")
        return items, position + 1

    def _string(self, position: int) -> tuple[str, int]:
        start = position + len(self._quote)
        stop = self._text.find(self._quote, start)
        if stop < 0:
            raise Broken(f"a text has no {self._quote} at its end")
        return self._text[start:stop], stop + len(self._quote)

    def _word(self, position: int) -> tuple[str, int]:
        match = self._bare.match(self._text, position)
        if match is None:
            raise Broken(f"{self._text[position : position + 20]!r} is no value")
        return match[0].strip(), match.end()

    def _expect(self, position: int, mark: str) -> int:
        if not self._text.startswith(mark, position):
            raise Broken(f"{self._text[position : position + 20]!r} stands where {mark!r} is expected")
        return position + len(mark)
