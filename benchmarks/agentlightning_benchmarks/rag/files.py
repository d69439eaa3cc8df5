"""Reads the benchmark's JSONL files. Every error names the file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from agentlightning.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Line:
    """A JSON object with its file and line."""

    where: str
    fields: dict[str, Any]

    def text(self, key: str) -> str:
        """Return a required, nonempty text field."""
        if key not in self.fields:
            raise ConfigError(f"{self.where}: {key!r} is missing. Expected text.")
        return checked_text(self.fields[key], f"{self.where}: {key!r}")

    def many(self, key: str) -> list[Any]:
        """Return an optional list field."""
        value: Any = self.fields.get(key)
        if value is not None and not isinstance(value, list):
            raise ConfigError(f"{self.where}: {key!r} is {value!r:.60}. Expected a list.")
        return cast("list[Any]", value or [])


def read_lines(path: Path, holds: str) -> Iterator[Line]:
    """Read the JSON objects of a file, skipping empty lines. `holds` describes them in errors. Raises `ConfigError`, also for an empty
    file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}. Expected {holds}, one JSON object per line.") from error
    has_lines = False
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            has_lines = True
            yield _parse(line, f"{path}, line {number}")
    if not has_lines:
        raise ConfigError(f"{path}: the file is empty. Expected {holds}, one JSON object per line.")


def checked_text(value: Any, where: str) -> str:
    """Return the value if it is a nonempty text that UTF-8 can encode."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where} is {value!r:.60}. Expected text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where} contains half a character (a lone surrogate) at position {error.start}. Write it again.") from error
    return value


def _parse(line: bytes, where: str) -> Line:
    try:
        value: Any = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 at byte {error.start + 1}. Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        shown = line.decode().strip()
        raise ConfigError(
            f"{where}: not JSON: {error.msg} (column {error.colno}): {shown[:60]}. Write one JSON object per line."
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply. Write a flat JSON object.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {value!r:.60}. Expected a JSON object.")
    return Line(where, cast("dict[str, Any]", value))
