"""Server-sent events, with their bytes as they came."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec

BLANK_LINE = re.compile(rb"\r?\n\r?\n")


async def events(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events of a stream of bytes, each with its blank line. Together they are all that came."""
    rest = b""
    async for part in parts:
        searched = max(len(rest) - 3, 0)
        rest += part
        while (end := BLANK_LINE.search(rest, searched)) is not None:
            yield rest[: end.end()]
            rest, searched = rest[end.end() :], 0
    if rest:
        yield rest


def event_data(raw: bytes) -> bytes:
    """The data of an event."""
    lines = [line.removesuffix(b"\r") for line in raw.split(b"\n")]
    return b"\n".join(line.removeprefix(b"data:").removeprefix(b" ") for line in lines if line.startswith(b"data:"))


def event_value(raw: bytes) -> Any:
    """The data of an event as JSON; None: it is none."""
    try:
        return msgspec.json.decode(event_data(raw) or b"null")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def with_data(raw: bytes, data: bytes) -> bytes:
    """The event with other data, on one line."""
    lines = raw.rstrip(b"\r\n").split(b"\n")
    first = next(i for i, line in enumerate(lines) if line.startswith(b"data:"))
    kept = [line for i, line in enumerate(lines) if i == first or not line.startswith(b"data:")]
    kept[first] = b"data: " + data
    return b"\n".join(kept) + b"\n\n"
