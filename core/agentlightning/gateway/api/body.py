"""The body of a request: bytes of a limited size, JSON of a limited depth, fields, and a type. A fault in it is a `Refused`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any, TypeVar, cast

import msgspec
from starlette.types import Receive

from agentlightning.gateway.api.schema import Refused

T = TypeVar("T")
MAX_BODY = 32 * 2**20
"""Bytes of a body, at most, by default."""
MAX_DEPTH = 100
"""Levels of a body. Everything that reads a request can rely on it."""
_fields = msgspec.json.Decoder(dict[str, Any])
_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Errors of a decoder on bytes that are not the expected JSON."""


async def read_body(receive: Receive, headers: Mapping[str, str], limit: int) -> bytes | None:
    """The body, or None if the client went away before its end. Raises `Refused` (413) for one over the limit, and keeps none of it."""
    length, size, parts = headers.get("content-length", ""), 0, list[bytes]()
    while True:
        if (length.isdecimal() and int(length[:20]) > limit) or size > limit:
            raise Refused(f"The body has more than {limit} bytes. Send a smaller one.", status=413, code="request_too_large")
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if not message.get("more_body", False) and size <= limit:
            return b"".join(parts)


def read_fields(body: bytes) -> dict[str, Any]:
    """The fields of a JSON object. Raises `Refused`."""
    try:
        fields = _fields.decode(body)
    except FAULTS as error:
        raise Refused(f"The body is not JSON: {_words(error)}. Send a JSON object.", param=_faulty_field(body)) from error
    for name, value in fields.items():
        check_depth(value, name)
    return fields


def convert(fields: dict[str, Any], type: type[T]) -> T:
    """The fields of a body as a type. Raises `Refused` that names the field."""
    try:
        return msgspec.convert(fields, type)
    except msgspec.ValidationError as error:
        match = re.search(r" - at `\$\.?(.*)`$", str(error)) or re.search(r"missing required field `(\w+)`", str(error))
        raise Refused(f"The request is not valid: {error}.", param=match and match[1]) from error


def check_depth(value: object, name: str) -> None:
    """Raises `Refused` for a value that is nested too deeply."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        mappings = [list(cast("dict[str, Any]", item).values()) for item in level if isinstance(item, dict)]
        level = list(chain(*mappings, *(cast("list[Any]", item) for item in level if isinstance(item, list))))
        if not level:
            return
    raise Refused(f"{name} is nested too deeply. Use at most {MAX_DEPTH} levels.", param=name)


def _words(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _faulty_field(body: bytes) -> str | None:
    """The field of an object that holds the fault, if the rest can be read."""
    try:
        raw = _raw_fields.decode(body)
    except FAULTS:
        return None
    for name, value in raw.items():
        try:
            msgspec.json.decode(value)
        except FAULTS:
            return name
    return None
