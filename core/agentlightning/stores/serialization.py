"""Values to bytes and back. `decode(encode(value), kind)` equals `value`, NaN, empty arrays and huge integers included.

A message is a header of 12 bytes, little-endian: magic `AGLw`, schema (uint16), reserved (uint16, 0), CRC-32 of the body (uint32). The
body is MessagePack: msgspec writes each value as a map of its fields with its class name under `type`. Arrays are raw little-endian int32
or float32. Content from outside (task inputs, messages, attributes) is anything that JSON can hold, and nothing else.

A value may gain a field with a default without a new schema: older bytes then read as the default. For any other change, raise `SCHEMA` and
add an entry to `UPGRADES`, so that stores with older bytes stay readable.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from struct import Struct
from typing import Any, TypeVar, cast, get_args, get_origin, overload

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import WireError
from agentlightning.stores.upgrades import upgrade_2
from agentlightning.types import JSON, Call, Completion, Rollout, Span, Task, Trajectory, WireValue

SCHEMA = 3
"""The schema that this version writes."""
UPGRADES: dict[int, Callable[[Any], Any]] = {2: upgrade_2}
"""By schema: a function from the plain content of a message to that of the next schema. Values are dicts with their class name under
`type`, and arrays stay `msgspec.msgpack.Ext`."""
MAGIC = b"AGLw"
HEADER = Struct("<4sHHI")

T = TypeVar("T")
Ext = msgspec.msgpack.Ext

_INT32, _FLOAT32, _BIG_INT, _BROKEN_TEXT = 1, 2, 3, 4  # extension codes; 5 is reserved for content other than text
_ARRAYS = {np.dtype(np.int32): (_INT32, "<i4"), np.dtype(np.float32): (_FLOAT32, "<f4")}
_LITTLE_ENDIAN = dict(_ARRAYS.values())
_MAX_DIGITS = 4300


def checksum(body: bytes | memoryview, schema: int) -> int:
    """The checksum in a header. Since schema 3 it begins with the schema, so a changed schema is refused and not upgraded."""
    return zlib.crc32(body, schema if schema > 2 else 0)


def encode(value: Any) -> bytes:
    """The bytes of a `WireValue`, an array, a plain scalar, or a list or tuple of these. Raises `WireError` for anything else."""
    try:
        body = _ENCODER.encode(_with_content(value))
    except (TypeError, ValueError, OverflowError, NotImplementedError, RecursionError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"Cannot write a {type(value).__name__}: {error}. Give its fields the types that the class declares.") from error
    return HEADER.pack(MAGIC, SCHEMA, 0, checksum(body, SCHEMA)) + body


@overload
def decode(data: bytes, kind: type[T]) -> T: ...
@overload
def decode(data: bytes, kind: Any) -> Any: ...
def decode(data: bytes, kind: Any) -> Any:
    """The value of type `kind` (as in `list[Span]` or `tuple[Rollout, Attempt]`) that `encode` wrote.

    Raises `WireError` for foreign or damaged bytes, another schema, or a value of another type.
    """
    if len(data) < HEADER.size or data[: len(MAGIC)] != MAGIC:
        raise WireError(f"These {len(data)} bytes are not Agent Lightning's. Send bytes that start with {MAGIC!r}.")
    _, schema, _, expected = HEADER.unpack_from(data)
    if schema > SCHEMA or not all(older in UPGRADES for older in range(schema, SCHEMA)):
        advice = "Upgrade agentlightning here" if schema > SCHEMA else "Upgrade agentlightning where the bytes were written"
        raise WireError(f"The bytes have schema {schema}, and this agentlightning reads schema {SCHEMA}. {advice}.")
    body = memoryview(data)[HEADER.size :]
    if checksum(body, schema) != expected:
        raise WireError(f"The bytes are damaged: the checksum of {len(body)} bytes does not match. Send or write them again.")
    try:
        return _decoder(kind).decode(_upgraded(body, schema) if schema < SCHEMA else body)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"The bytes do not hold {_name(kind)}: {error}. Read them as the type that was written.") from error


def _upgraded(body: memoryview, schema: int) -> bytes:
    """The body of an older schema, as one of this schema."""
    content = msgspec.msgpack.decode(body)
    for older in range(schema, SCHEMA):
        content = UPGRADES[older](content)
    return msgspec.msgpack.encode(content)


# --- arrays ------------------------------------------------------------------------------------------------------------------------


def _enc_hook(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"it holds a {type(value).__qualname__}")
    array = cast("NDArray[Any]", value)
    if array.ndim != 1 or array.dtype not in _ARRAYS:
        raise WireError(f"Cannot write an array of {array.dtype} with {array.ndim} dimensions. Give int32 or float32 with one.")
    code, little_endian = _ARRAYS[array.dtype]
    return Ext(code, array.astype(little_endian).tobytes())


def _array(data: memoryview, little_endian: str) -> NDArray[Any]:
    array = np.frombuffer(bytes(data), little_endian)  # a copy: aligned, and the message itself is not kept alive
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    native.flags.writeable = False
    return native


def _dec_hook(kind: Any, value: Any) -> Any:
    if _dtype(kind) is None or getattr(value, "dtype", None) != _dtype(kind):
        raise TypeError(f"expected {_name(kind)}, got {getattr(value, 'dtype', type(value).__name__)}")
    return value


@cache
def _dtype(kind: Any) -> np.dtype[Any] | None:
    """The dtype of an array type. Reads its arguments, because some versions of numpy and Python resolve the alias first."""
    shape_and_dtype = get_args(kind) if get_origin(kind) is np.ndarray else ()
    return np.dtype(get_args(shape_and_dtype[1])[0]) if len(shape_and_dtype) == 2 else None


# --- content -----------------------------------------------------------------------------------------------------------------------


_CONTENT: dict[type, tuple[tuple[str, bool], ...]] = {
    # the fields that hold JSON (True), or values with such fields (False)
    Task: (("input", True),),
    Rollout: (("task", False),),
    Call: (("messages", True), ("tool_schemas", True)),
    Completion: (("message", True),),
    Span: (("attributes", True),),
    Trajectory: (("task", False),),
    RolloutState: (("rollout", False),),
    AttemptRecords: (("calls", False), ("completions", False), ("spans", False)),
}


def _with_content(value: Any) -> Any:
    """The value with its content checked, and in a form that MessagePack can hold."""
    if isinstance(value, (list, tuple)):
        return [_with_content(item) for item in cast("list[Any]", value)]
    kind: Any = value.__class__
    fields = _CONTENT.get(kind)
    if fields is None:
        return value
    return replace(value, **{name: (_checked if is_json else _nested)(value, name) for name, is_json in fields})


def _nested(value: WireValue, name: str) -> Any:
    return _with_content(getattr(value, name))


def _checked(value: WireValue, name: str) -> JSON:
    try:
        return _json(getattr(value, name))
    except (_ForeignError, RecursionError) as error:
        problem = str(error) if isinstance(error, _ForeignError) else " refers to itself"
        identity = f"{type(value).__name__} {getattr(value, 'id', '')}"
        raise WireError(f"{identity}: {name}{problem}. Give what JSON can hold: text, numbers, lists, dicts, None.") from error


class _ForeignError(Exception):
    """Content that JSON cannot hold. The message is its path and its type."""


def _json(value: JSON) -> JSON:
    """A copy of JSON content. Huge integers and text that UTF-8 cannot hold become extensions."""
    kind = cast(Any, type(value))
    if kind is str:
        return value if value.isascii() or not _broken(value) else Ext(_BROKEN_TEXT, value.encode("utf-8", "surrogatepass"))
    if value is None or kind is bool or kind is float:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**64 else Ext(_BIG_INT, str(value).encode())
    if kind is dict:
        copy: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str) or _broken(key):
                raise _ForeignError(f" has the key {key!r}, which is not a string in UTF-8")
            copy[str(key)] = _item(key, item)
        return copy
    if kind is list or kind is tuple:
        return [_item(index, item) for index, item in enumerate(value)]
    subclassed: tuple[Any, ...] = (str, int, float, dict, list, tuple)  # np.float64, StrEnum, OrderedDict, a named tuple
    for plain in subclassed:
        if isinstance(value, plain):
            return _json(plain(value))
    raise _ForeignError(f" is a {kind.__module__}.{kind.__qualname__}")


def _item(key: str | int, item: JSON) -> JSON:
    try:
        return _json(item)
    except _ForeignError as error:
        raise _ForeignError(f"[{key!r}]{error}") from None


def _broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


# --- msgspec -----------------------------------------------------------------------------------------------------------------------


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_enc_hook)


def _ext_hook(code: int, data: memoryview) -> Any:
    if code in _LITTLE_ENDIAN:
        return _array(data, _LITTLE_ENDIAN[code])
    if code == _BIG_INT:
        digits = bytes(data).decode("ascii")
        if len(digits) > _MAX_DIGITS:
            raise WireError(f"The bytes hold an integer of {len(digits)} digits. Write at most {_MAX_DIGITS}.")
        return int(digits)
    if code == _BROKEN_TEXT:
        return bytes(data).decode("utf-8", "surrogatepass")
    raise WireError(f"The bytes hold the unknown extension {code}. Upgrade agentlightning here.")


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind, ext_hook=_ext_hook, dec_hook=_dec_hook)


def _name(kind: Any) -> str:
    if isinstance(kind, type) and not get_args(kind):
        return kind.__name__
    return str(kind).replace("agentlightning.types.", "").replace("agentlightning.contracts.store.", "")
