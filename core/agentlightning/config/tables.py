"""Settings from tables: dataclasses and functions get the values that a user wrote, checked and named.

A wrong key says which one, where, and the nearest right one; a wrong value says which key, what was expected and what was given. Values
may come from TOML, which has no null: `false` switches off a setting that may be absent (`dual_clip = false`).
"""

from __future__ import annotations

import difflib
import functools
import inspect
import traceback
import types
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from agentlightning.errors import ConfigError, LightningError, PluginError
from agentlightning.registry.registry import Registry, registry, singular

if TYPE_CHECKING:
    from agentlightning.contracts.loss import Correction, LossSettings
    from agentlightning.rl.trajectory.step_rewards import StepReward

T = TypeVar("T")
_INPUTS = {
    "credits": ("rollouts",),
    "advantages": ("rollouts", "returns"),
    "losses": ("logprobs", "old_logprobs", "advantages"),
    "filters": ("group",),
    "step_signals": ("records",),
}
"""What functions of a kind are called with."""
_TRIALS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "credits": lambda: (_no_episodes(),),
    "advantages": lambda: (_no_episodes(), np.zeros(0)),
    "filters": lambda: ([],),
}
"""What the loop gives, of no rollouts at all: rollouts; rollouts and returns; the trajectories of a group."""


def build(cls: type[T], data: Any, where: str = "") -> T:
    """An instance of a dataclass from a table. `where` is the table's name (`algorithm`); empty: the top of the file."""
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'the configuration'} is {_shown(data)}; expected a table")
    table = cast("Mapping[str, Any]", data)
    settable = {each.name: each for each in fields(cast(Any, cls)) if each.init}
    _check_keys(table, list(settable), where)
    missing = [name for name, each in settable.items() if name not in table and _required(each)]
    if missing:
        raise ConfigError(f"missing {', '.join(map(repr, missing))} {_in(where)}; expected {_described(_hints(cls)[missing[0]])}")
    hints = _hints(cls)
    return cls(**{name: convert(value, hints[name], _key(where, name)) for name, value in table.items()})


def bind(kind: str, part: Any, where: str, plugins: Registry | None = None) -> Callable[..., Any]:
    """A registered function (`credits`, `advantages`, `filters`) with its settings bound.

    `part` is a name, `module:function`, a table of a name and settings, or the function itself. The settings are those keywords of the
    function that have defaults. It is tried on no rollouts at all, so that a setting which it refuses is found before the first step.
    """
    name, table = _name_and_settings(part, where)
    function: Any = _load(kind, name, where, plugins) if isinstance(name, str) else name
    if not callable(function):
        raise ConfigError(f"{where} is {_shown(part)}; expected a function, or the name of one")
    if table and not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
        _check_keys(table, _keywords(function), where)
    hints = _hints(function) if table else {}
    settings = {key: convert(value, hints.get(key, Any), _key(where, key)) for key, value in table.items()}
    bound = functools.partial(function, **settings) if settings else function
    if kind in _INPUTS:
        _check_inputs(bound, _INPUTS[kind], f"{where} {getattr(function, '__qualname__', name)!r}")
    if kind in _TRIALS:
        _try(bound, _TRIALS[kind]())
    return bound


def _keywords(function: Callable[..., Any]) -> list[str]:
    """The settings of a function."""
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY or p.default is not p.empty]


def build_loss(part: Any, where: str, plugins: Registry | None = None) -> LossSettings:
    """Loss settings from a name, a table of a name and settings, or the settings themselves.

    A custom function `(logprobs, old_logprobs, advantages, **settings) -> term` has the settings of every loss besides its own.
    """
    from agentlightning.contracts.loss import LossSettings
    from agentlightning.rl.loss import FunctionLoss

    if isinstance(part, LossSettings):
        return part
    name, table = _name_and_settings(part, where)
    cls = _load("losses", name, where, plugins) if isinstance(name, str) else name
    if table.get("correction"):
        table["correction"] = _build_correction(table["correction"], f"{where}.correction", plugins)
    if inspect.isfunction(cls):
        of_all = {each.name for each in fields(LossSettings)} - {"name"}
        own = {key: value for key, value in table.items() if key not in of_all}
        _check_keys(own, [*_keywords(cls), *sorted(of_all)], where)
        mine = bind("losses", {"name": cls, **own}, where)
        every = {key: value for key, value in table.items() if key in of_all}
        return build(FunctionLoss, {"name": name if isinstance(name, str) else cls.__qualname__, "function": mine, **every}, where)
    if not (isinstance(cls, type) and issubclass(cls, LossSettings)):
        raise ConfigError(
            f"{where} is {_shown(part)}; expected the settings of a loss (a subclass of LossSettings), a function of (logprobs, "
            "old_logprobs, advantages), or the name of one"
        )
    return build(cls, table, where)


def _build_correction(part: Any, where: str, plugins: Registry | None) -> Correction:
    from agentlightning.contracts.loss import Correction

    if isinstance(part, Correction):
        return part
    name, table = _name_and_settings(part, where)
    cls = _load("corrections", name, where, plugins) if isinstance(name, str) else name
    if not (isinstance(cls, type) and issubclass(cls, Correction)):
        raise ConfigError(f"{where} is {_shown(part)}; expected the settings of a correction, or the name of one")
    return build(cls, table, where)


def build_step_rewards(values: Mapping[str, float], plugins: Registry | None = None) -> tuple[StepReward, ...]:
    """The step rewards of a configuration, by the name of a signal or `module:function`. Raises `ConfigError`."""
    from agentlightning.rl.trajectory.step_rewards import step_rewards

    return step_rewards(values, lambda name: bind("step_signals", name, f"step_rewards.{name}", plugins))


def open_table(kind: str, table: Mapping[str, Any], where: str, plugins: Registry | None = None) -> tuple[Any, Any]:
    """The class that an `[engine]` or `[trainer]` table names, and its `Settings` from the table."""
    name, settings = _name_and_settings(table, where)
    cls = _load(kind, cast(str, name), where, plugins)
    if not is_dataclass(getattr(cls, "Settings", None)):
        raise PluginError(
            f"{singular(kind)} {name!r} has no dataclass `Settings`, so its settings cannot be read; it is a fault of its plugin"
        )
    return cls, build(cls.Settings, settings, where)


@contextmanager
def naming(source: object) -> Generator[None]:
    """Put the file's name before the message of a `ConfigError` of the block."""
    try:
        yield
    except ConfigError as error:
        if str(error).startswith(f"{source}: "):
            raise
        raise type(error)(f"{source}: {error}") from error


def convert(value: Any, hint: Any, key: str) -> Any:
    """The value as its type has it; `ConfigError` names the key, what was expected and what was given."""
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is False and type(None) in choices and bool not in choices:
        return None
    plain = [each for each in choices if each is not type(None)]
    if len(plain) == 1 and is_dataclass(plain[0]) and isinstance(value, Mapping | cast(type, plain[0])):
        return build(cast("type[Any]", plain[0]), value, key)
    if Path in plain and isinstance(value, str | Path):
        return Path(value)
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        at = str(error).partition("$")[2].rstrip("`")
        raise ConfigError(f"{key} is {_shown(value)}; expected {_described(hint)}" + (f" (look at {key}{at})" if at else "")) from error
    except TypeError:
        return value  # a type that is no plain data: whoever takes the setting checks it


def call(where: str, part: Any, function: Callable[..., Any], *given: Any) -> Any:
    """What a function that a setting names gives. `PluginError` says which one raised what, and where."""
    try:
        return function(*given)
    except LightningError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise PluginError(
            f"{where} {named(part)} raised {type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"
        ) from error


def named(part: Any) -> str:
    """How a part of a configuration is spoken of."""
    name = cast("Mapping[str, Any]", part).get("name", part) if isinstance(part, Mapping) else part
    return repr(name) if isinstance(name, str) else repr(getattr(name, "__qualname__", name))


def _check_inputs(function: Callable[..., Any], inputs: tuple[str, ...], who: str) -> None:
    """`ConfigError` for a function that cannot be called as it will be."""
    try:
        inspect.signature(function).bind(*inputs)
    except TypeError as error:
        raise ConfigError(f"{who} cannot be called as ({', '.join(inputs)}): {error}") from error
    except ValueError:
        return  # one that is not written in Python may have no signature


def _no_episodes() -> Any:
    from agentlightning.rl.arrays import RolloutArrays

    return RolloutArrays.of([])


def _try(function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
    """Raise only what is said on purpose; that a function cannot do without rollouts is no fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(*inputs)
        except LightningError:
            raise
        except Exception:
            return


def _name_and_settings(part: Any, where: str) -> tuple[Any, dict[str, Any]]:
    """What is named (or the object itself), and the rest of the table."""
    if not isinstance(part, Mapping):
        return part, {}
    table = dict(cast("Mapping[str, Any]", part))
    name = table.pop("name", None)
    if name is None:
        raise ConfigError(f"missing 'name' {_in(where)}; expected text")
    if not (isinstance(name, str) or callable(name)):
        raise ConfigError(f"{_key(where, 'name')} is {_shown(name)}; expected text")
    return name, table


def _load(kind: str, name: str, where: str, plugins: Registry | None) -> Any:
    try:
        return (plugins or registry()).load(kind, name)
    except ConfigError as error:
        raise type(error)(f"{where}: {error}") from error


def _check_keys(table: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown key {key!r} {_in(where)};{hint} known: {', '.join(known) or 'none'}")


def _required(each: Field[Any]) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _hints(owner: Any) -> dict[str, Any]:
    try:
        return get_type_hints(owner)
    except Exception as error:
        name = getattr(owner, "__qualname__", repr(owner))
        raise PluginError(f"the annotations of {name} cannot be read, so its settings cannot be checked: {error}") from error


def _in(where: str) -> str:
    return f"in [{where}]" if where else "at the top level"


def _key(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _shown(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "a table"}
    kind = names.get(cast("type[Any]", type(value)), type(value).__name__)
    return f"{value!r:.80} ({kind})"


def _described(hint: Any) -> str:
    """A type in words."""
    words: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path", dict: "a table"}
    origin, arguments = get_origin(hint), get_args(hint)
    with suppress(TypeError):  # a hint need not be hashable
        if hint in words:
            return words[hint]
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        some = [_described(each) for each in arguments if each is not type(None)]
        return " or ".join(some) + (", or false for none" if len(some) < len(arguments) else "")
    if origin in (list, tuple):
        return f"a list, of each: {_described(arguments[0])}" if arguments else "a list"
    if origin is dict:
        return "a table" + (f", of each: {_described(arguments[1])}" if arguments[1] is not Any else "")
    if is_dataclass(hint):
        return "a table"
    return "a value" if hint is Any else str(getattr(hint, "__name__", hint))
