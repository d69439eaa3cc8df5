"""Values to bytes and back. `decode(encode(value), kind)` equals `value`, NaN, empty arrays and huge integers included.

A message is a header of 12 bytes, little-endian: magic `AGLw`, schema (uint16), reserved (uint16, 0), CRC-32 of the body (uint32). The
body is MessagePack. A value of the model is the pair (name of its kind, map of its fields); arrays are raw little-endian int32 or
float32. Content that comes from outside (task inputs, messages, attributes) is whatever JSON can hold, and nothing else.
"""

from __future__ import annotations

import types
import zlib
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from functools import cache
from struct import Struct
from typing import Any, TypeVar, Union, cast, get_args, get_origin, overload

import msgspec
import numpy as np

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import WireError
from agentlightning.types import (
    JSON,
    Attempt,
    Call,
    Completion,
    Policy,
    Reward,
    Rollout,
    Sampling,
    Span,
    Task,
    Trajectory,
    Transition,
)  # fmt: skip

SCHEMA = 1
"""What this version writes, and the newest that it reads."""
MAGIC = b"AGLw"
HEADER = Struct("<4sHHI")

T = TypeVar("T")
Ext = msgspec.msgpack.Ext

_INT32, _FLOAT32, _BIG_INT, _BROKEN_TEXT = 1, 2, 3, 4  # extension codes; 5 is reserved for content other than text

_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Task, Sampling, Rollout, Attempt, Call, Completion, Span, Reward, Policy, Transition, Trajectory, RolloutState, AttemptRecords,
    )
}  # fmt: skip


def encode(value: Any) -> bytes:
    """The bytes of a value of the model, a plain scalar, or a list or tuple of these. `WireError` when it cannot be written."""
    try:
        body = _encoder().encode(_tagged(value))
    except (TypeError, ValueError, OverflowError, NotImplementedError, RecursionError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"a {type(value).__name__} cannot be written: {error}; expected the types that the model declares") from error
    return HEADER.pack(MAGIC, SCHEMA, 0, zlib.crc32(body)) + body


@overload
def decode(data: bytes, kind: type[T]) -> T: ...
@overload
def decode(data: bytes, kind: Any) -> Any: ...
def decode(data: bytes, kind: Any) -> Any:
    """The value of type `kind` (as in `list[Span]` or `tuple[Rollout, Attempt]`) that `encode` made these bytes of.

    Raises `WireError` when they are not ours, damaged, of a newer schema, or hold something else.
    """
    if len(data) < HEADER.size or data[: len(MAGIC)] != MAGIC:
        raise WireError(f"these {len(data)} bytes are not Agent Lightning's: expected them to start with {MAGIC!r}")
    _, schema, _, checksum = HEADER.unpack_from(data)
    if schema > SCHEMA:
        raise WireError(
            f"the bytes have schema {schema}, and this version of agentlightning reads up to schema {SCHEMA}; "
            "upgrade agentlightning here, or write with the older version"
        )
    body = memoryview(data)[HEADER.size :]
    if schema < 1 or zlib.crc32(body) != checksum:
        raise WireError(f"the bytes are damaged: the checksum of {len(body)} bytes does not match")
    try:
        return _built(kind, _decoder(_shape(kind)).decode(body))
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"the bytes do not hold {_name(kind)}: {error}") from error


def portable(value: T) -> T:
    """The value with a copy of its content, checked: what it becomes on the wire stays equal, and nobody can edit the copy.

    `WireError` names the content that JSON cannot hold."""
    return _portable(value, escape=False)


# --- content -----------------------------------------------------------------------------------------------------------------------


def _portable(value: Any, escape: bool) -> Any:
    if isinstance(value, tuple):
        return tuple(_portable(each, escape) for each in cast("tuple[Any, ...]", value))
    kind: Any = value.__class__
    fields = _CONTENT.get(kind)
    if fields is None:
        return value
    changes: dict[str, Any] = {}
    for name, is_json in fields:
        old = getattr(value, name)
        if is_json:
            try:
                changes[name] = _json(old, escape)
            except (_ForeignError, RecursionError) as error:
                identity = f"{type(value).__name__} {getattr(value, 'id', '')}".strip()
                raise WireError(f"{identity}: {name}{error if isinstance(error, _ForeignError) else ' refers to itself'}") from error
        else:
            changes[name] = _portable(old, escape)
    return replace(value, **changes)


class _ForeignError(Exception):
    """Something that JSON cannot hold; the message is the path to it."""


def _json(value: JSON, escape: bool) -> JSON:
    """A copy of JSON content. With `escape`, what MessagePack cannot hold becomes an extension."""
    kind = cast(Any, type(value))
    if kind is str:
        if escape and not value.isascii() and _broken(value):
            return Ext(_BROKEN_TEXT, value.encode("utf-8", "surrogatepass"))
        return value
    if value is None or kind is bool or kind is float:
        return value
    if kind is int:
        return Ext(_BIG_INT, str(value).encode()) if escape and not -(2**63) <= value < 2**64 else value
    if kind is dict:
        copy: dict[str, Any] = {}
        for key, each in value.items():
            if not isinstance(key, str) or _broken(key):
                raise _ForeignError(f" has the key {key!r}; expected a string that UTF-8 can hold")
            try:
                copy[str(key)] = _json(each, escape)
            except _ForeignError as error:
                raise _ForeignError(f"[{key!r}]{error}") from None
        return copy
    if kind is list or kind is tuple:
        items: list[Any] = []
        for index, each in enumerate(value):
            try:
                items.append(_json(each, escape))
            except _ForeignError as error:
                raise _ForeignError(f"[{index}]{error}") from None
        return items
    subclassed: tuple[Any, ...] = (str, int, float, dict, list, tuple)  # np.float64, StrEnum, OrderedDict, a named tuple
    for plain in subclassed:
        if isinstance(value, plain):
            return _json(plain(value), escape)
    raise _ForeignError(f" is a {kind.__module__}.{kind.__qualname__}; expected what JSON can hold (text, numbers, lists, dicts, None)")


def _broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


_CONTENT: dict[type, tuple[tuple[str, bool], ...]] = {
    # which fields hold JSON (True), or values that hold some (False)
    Task: (("input", True),),
    Rollout: (("task", False),),
    Call: (("input", True),),
    Completion: (("message", True),),
    Span: (("attributes", True),),
    Trajectory: (("task", False),),
    RolloutState: (("rollout", False),),
    AttemptRecords: (("calls", False), ("completions", False), ("spans", False)),
}


# --- MessagePack -------------------------------------------------------------------------------------------------------------------


def _tagged(value: Any) -> Any:
    """The value with each outermost dataclass as (kind, fields); those inside are known by the types of the fields."""
    if isinstance(value, (list, tuple)):
        return [_tagged(each) for each in cast("list[Any]", value)]
    if is_dataclass(value):
        name = type(value).__name__
        if _KINDS.get(name) is not type(value):
            raise WireError(f"a {name} has no place on the wire; known: {', '.join(_KINDS)}")
        return (name, _portable(value, escape=True))
    return value


def _enc_hook(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        array = cast("np.ndarray[Any, np.dtype[Any]]", value)
        if array.ndim == 1 and array.dtype == np.int32:
            return Ext(_INT32, array.astype("<i4").tobytes())
        if array.ndim == 1 and array.dtype == np.float32:
            return Ext(_FLOAT32, array.astype("<f4").tobytes())
        raise WireError(f"an array of {array.dtype} with {array.ndim} dimensions; expected int32 or float32 with one")
    raise NotImplementedError(f"it holds a {type(value).__qualname__}")


def _ext_hook(code: int, data: memoryview) -> Any:
    if code in (_INT32, _FLOAT32):
        # a copy: aligned, and the message itself is not kept alive
        little = np.frombuffer(bytes(data), "<i4" if code == _INT32 else "<f4")
        native = little.astype(np.int32 if code == _INT32 else np.float32, copy=False)
        native.flags.writeable = False
        return native
    if code == _BIG_INT:
        digits = bytes(data).decode("ascii")
        if len(digits) > 4300:
            raise WireError(f"an integer of {len(digits)} digits; at most 4300 are read")
        return int(digits)
    if code == _BROKEN_TEXT:
        return bytes(data).decode("utf-8", "surrogatepass")
    raise WireError(f"unknown extension {code}; expected 1 to 4")


def _dec_hook(kind: Any, value: Any) -> Any:
    expected = _dtype(kind)
    if expected is None or getattr(value, "dtype", None) != expected:
        raise WireError(f"expected {_name(kind)}, found a {type(value).__name__}")
    return value


@cache
def _dtype(kind: Any) -> Any:
    """Of the elements of an array type; None: it is none. Not compared with `IntArray`, which later versions of numpy hand on resolved."""
    shape_and_dtype = get_args(kind) if get_origin(kind) is np.ndarray else ()
    return get_args(shape_and_dtype[1])[0] if len(shape_and_dtype) == 2 else None


@cache
def _encoder() -> msgspec.msgpack.Encoder:
    return msgspec.msgpack.Encoder(enc_hook=_enc_hook)


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind, ext_hook=_ext_hook, dec_hook=_dec_hook)


# --- typed reading -----------------------------------------------------------------------------------------------------------------


def _members(kind: Any) -> tuple[Any, ...] | None:
    """The members of a union, or None."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else None


@cache
def _shape(kind: Any) -> Any:
    """`kind` with each value of the model replaced by (name, bytes not read yet)."""
    members = _members(kind)
    if members is not None:
        shapes = {_shape(each) for each in members}
        return Union[tuple(shapes)]  # noqa: UP007  # built while running
    if is_dataclass(kind):
        return tuple[str, msgspec.Raw]
    origin = get_origin(kind)
    if origin is list:
        return list[_shape(get_args(kind)[0])]
    if origin is tuple:
        return tuple[tuple(each if each is Ellipsis else _shape(each) for each in get_args(kind))]  # type: ignore[misc]
    return kind


def _built(kind: Any, value: Any) -> Any:
    """Read the values that `_shape` left as bytes."""
    members = _members(kind)
    if value is None:
        return None
    if is_dataclass(kind) or (members is not None and any(is_dataclass(each) for each in members)):
        name, raw = value
        found = _KINDS.get(name)
        if found is None:
            raise WireError(f"unknown kind {name!r}; known: {', '.join(_KINDS)}")
        if found is not kind and found not in (members or ()):
            raise WireError(f"expected {_name(kind)}, found {name}")
        return _decoder(found).decode(raw)
    arguments, make = get_args(kind), cast("Callable[[Any], Any] | None", get_origin(kind))
    if make is list or (make is tuple and arguments[-1] is Ellipsis):
        return make(_built(arguments[0], each) for each in value)
    if make is tuple:
        return tuple(_built(each, item) for each, item in zip(arguments, value, strict=True))
    return value


def _name(kind: Any) -> str:
    if isinstance(kind, type) and not get_args(kind):
        return kind.__name__
    return str(kind).replace("agentlightning.types.", "").replace("agentlightning.contracts.store.", "")
