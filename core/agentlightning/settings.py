"""Settings are dataclasses whose annotated types say what a field takes; checks, messages and the JSON schema all come from those types.

A value may come from TOML, which has no null: `false` switches off a setting that may be absent (`dual_clip = false`).
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from agentlightning.errors import ConfigError, PluginError, did_you_mean, unknown

T = TypeVar("T")
MAX = sys.float_info.max
PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
FiniteFloat = Annotated[float, Meta(ge=-MAX, le=MAX)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
FiniteNonNegative = Annotated[float, Meta(ge=0, le=MAX)]
UnitInterval = Annotated[float, Meta(ge=0, le=1)]
Beta = Annotated[float, Meta(ge=0, lt=1)]
WORDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path", Any: "a value"}


def of_kind(kind: str) -> Meta:
    """Mark a field that names a part of this kind of the registry (`advantages`); the JSON schema lists the registered ones."""
    return Meta(extra={"kind": kind})


class BaseSettings:
    """Base class of settings. Every field is checked by its type, in Python as in a file; `ConfigError` names the key."""

    table: ClassVar[str] = ""
    """The table's name in messages about an instance that Python code makes."""

    def __post_init__(self) -> None:
        hints = type_hints(type(self))
        for setting in fields(cast(Any, self)):
            value = convert(getattr(self, setting.name), hints[setting.name], join_key(self.table, setting.name))
            object.__setattr__(self, setting.name, value)


def build(cls: type[T], data: Any, where: str = "") -> T:
    """Return an instance of a dataclass from a table. `where` is the table's name (`algorithm`); empty means the top of the file."""
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'the configuration'} is {data!r:.80}. Use a table.")
    table = cast("Mapping[str, Any]", data)
    settable = {setting.name: setting for setting in fields(cast(Any, cls)) if setting.init}
    check_keys(table, settable, where)
    hints = type_hints(cls)
    missing = [name for name, setting in settable.items() if name not in table and is_required(setting)]
    if missing:
        raise ConfigError(f"Missing {', '.join(map(repr, missing))} {in_table(where)}. Set it to {describe(hints[missing[0]])}.")
    return cls(**{name: convert(value, hints[name], join_key(where, name)) for name, value in table.items()})


def convert(value: Any, hint: Any, key: str) -> Any:
    """Return the value as its type has it. `ConfigError` names the key, the value and what is allowed."""
    choices = [choice for choice in union_choices(hint) if choice is not type(None)]
    optional = len(choices) < len(union_choices(hint))
    if optional and (value is None or (value is False and bool not in choices)):
        return None
    tables = [choice for choice in choices if is_dataclass(choice)]
    if len(choices) > 1 and len(tables) == 1 and isinstance(value, Mapping | cast(type, tables[0])):
        choices = tables
    choice, arguments = choices[0], get_args(choices[0])
    if get_origin(choice) is Annotated and is_dataclass(arguments[0]):
        choice = arguments[0]
    if len(choices) == 1 and is_dataclass(choice) and isinstance(value, Mapping | cast(type, choice)):
        return build(cast("type[Any]", choice), value, key)
    if len(choices) == 1 and get_origin(choice) is dict and isinstance(value, dict) and arguments[0] is str:
        return {name: convert(item, arguments[1], f"{key}.{name}") for name, item in cast("dict[str, Any]", value).items()}
    if len(choices) == 1 and get_origin(choice) is tuple and arguments[-1] is Ellipsis and isinstance(value, list | tuple):
        return tuple(convert(item, arguments[0], f"{key}[{k}]") for k, item in enumerate(cast("list[Any]", value)))
    if Path in choices and isinstance(value, str | Path):
        return Path(value)
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        advice = f"Write {json.dumps([value])}." if _takes_list_of(value, hint) else f"Use {describe(hint)}."
        raise ConfigError(f"{key} is {value!r:.80}.{_nearest_choice(value, choices)} {advice}") from error
    except TypeError:
        return cast(Any, value)  # not plain data: the code that takes the setting checks it


def _takes_list_of(value: Any, hint: Any) -> bool:
    """Whether a list with this text or number alone would do."""
    if not isinstance(value, str | int | float):
        return False
    try:
        msgspec.convert([value], hint)
    except (msgspec.ValidationError, TypeError):
        return False
    return True


def describe(hint: Any) -> str:
    """Return a type in words: `a whole number of at least 1`, `'cpu' or 'cuda'`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _describe_annotated(*arguments)
    if origin is Literal:
        return _listed([repr(argument) for argument in arguments])
    if origin in (Union, types.UnionType):
        choices = [describe(argument) for argument in arguments if argument is not type(None)]
        return " or ".join(choices) + (", or false for none" if len(choices) < len(arguments) else "")
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}, each {' or '.join(dict.fromkeys(map(describe, arguments)))}"
    if origin in (list, tuple):
        item = describe(arguments[0]) if arguments else WORDS[Any]
        return "a list" if item == WORDS[Any] else f"a list of {item}"
    if hint is dict or origin is dict:
        return "a table" + (f" with {describe(arguments[1])} for each key" if arguments and arguments[1] is not Any else "")
    if is_dataclass(hint):
        return "a table"
    return WORDS.get(hint) or str(getattr(hint, "__name__", hint))


def _describe_annotated(hint: Any, *metadata: Any) -> str:
    text = describe(hint)
    for meta in metadata:
        if isinstance(meta, Meta):
            text = ("a finite number" if meta.le == MAX else text) + _bounds(meta)
            if meta.description is not None:
                text = meta.description if meta.pattern else f"{text} ({meta.description})"
    return text


def _bounds(meta: Meta) -> str:
    if meta.ge is not None and meta.le is not None and meta.le != MAX:
        return f" from {meta.ge} to {meta.le}"
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    limits = {name: getattr(meta, name) for name in words if getattr(meta, name) not in (None, MAX, -MAX)}
    return " " + " and ".join(f"{words[name]} {limit}" for name, limit in limits.items()) if limits else ""


def check_keys(table: Iterable[str], keys: Iterable[str], where: str) -> None:
    """Raise `ConfigError` for a key that is unknown, with the nearest known one."""
    keys = list(keys)
    for key in table:
        if key not in keys:
            raise ConfigError(unknown("key", str(key), keys, where=in_table(where)))


@cache
def type_hints(owner: Any) -> dict[str, Any]:
    """Return the annotated types of a class's fields, or of a function's arguments."""
    try:
        return get_type_hints(owner, include_extras=True)
    except Exception as error:
        name = getattr(owner, "__qualname__", repr(owner))
        raise PluginError(
            f"The annotations of {name} cannot be read: {error}. Fix them, because its settings are checked by them."
        ) from error


def is_required(setting: Field[Any]) -> bool:
    """Whether a table must have this field."""
    return setting.default is MISSING and setting.default_factory is MISSING


def union_choices(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union; the type itself where it is none."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def join_key(where: str, name: str) -> str:
    """Return `table.name`; `name` at the top level."""
    return f"{where}.{name}" if where else name


def in_table(where: str) -> str:
    """Return `in [table]`, as messages say it."""
    return f"in [{where}]" if where else "at the top level"


def _nearest_choice(value: Any, choices: list[Any]) -> str:
    plain = [get_args(choice)[0] if get_origin(choice) is Annotated else choice for choice in choices]
    literals = [literal for choice in plain if get_origin(choice) is Literal for literal in get_args(choice)]
    return did_you_mean(str(value), [str(literal) for literal in literals])


def _listed(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
