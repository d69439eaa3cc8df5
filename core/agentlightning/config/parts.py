"""A part of a configuration (`advantage = {name = "grpo", std = false}`) becomes a function or an object in one way: parse, make."""

from __future__ import annotations

import functools
import inspect
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from agentlightning.config.presets import PRESETS
from agentlightning.contracts.loss import Correction, LossSettings
from agentlightning.errors import ConfigError, LightningError, PluginError
from agentlightning.registry.registry import Registry, registry, singular
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.loss import FunctionLoss
from agentlightning.rl.trajectory.step_rewards import StepReward
from agentlightning.settings import build, check_keys, convert, in_table, join_key, type_hints

PartValue: TypeAlias = str | Mapping[str, Any] | Callable[..., Any]
"""A registered name, `module:attribute`, a table `{name = ..., setting = ...}`, or the object itself."""
INPUTS = {
    "credits": ("rollouts",),
    "advantages": ("rollouts", "returns"),
    "losses": ("logprobs", "old_logprobs", "advantages"),
    "filters": ("group",),
    "step_signals": ("records",),
}
"""The arguments that a run gives to a function of each kind."""
EMPTY_INPUTS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "credits": lambda: (RolloutArrays.of([]),),
    "advantages": lambda: (RolloutArrays.of([]), np.zeros(0)),
    "filters": lambda: ([],),
}
"""The same for no rollouts at all, on which a function is tried."""
EXPECTED: dict[str, tuple[type[Any], str]] = {
    "losses": (LossSettings, "the name of a loss, a subclass of LossSettings, or a function of (logprobs, old_logprobs, advantages)"),
    "corrections": (Correction, "the name of a correction, or a subclass of Correction"),
}
"""The base class of a kind, and the values to use."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a configuration by kind: an advantage, a loss, an engine.

    `Part.parse(kind, value, where).make()` gives the function with its settings bound, the algorithm, or the settings object of a loss, a
    correction, an engine or a trainer. A value is a registered name, `module:attribute`, a table of a `name` and settings, or the object
    itself.
    """

    kind: str
    """As in the registry: `advantages`, `losses`, `engines`."""
    where: str
    """The key in the configuration, for messages."""
    value: Any
    """The part as it was written."""
    name: str | None
    """None: the value is the object itself."""
    target: Any
    """The object behind the name: a function or a class."""
    settings: Mapping[str, Any]
    plugins: Registry

    @classmethod
    def parse(cls, kind: str, value: Any, where: str, plugins: Registry | None = None) -> Part:
        """Split a value into name and settings, and load what the name stands for. Raises `ConfigError`."""
        plugins = plugins or registry()
        settings = dict(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else {}
        name = settings.pop("name", None) if isinstance(value, Mapping) else value
        if name is None:
            raise ConfigError(f"Missing 'name' {in_table(where)}. Set it to text.")
        if not isinstance(name, str):
            if isinstance(value, Mapping) and not callable(name):
                raise ConfigError(f"{where}.name is {name!r:.80}. Use text.")
            return cls(kind, where, value, None, name, settings, plugins)
        with naming(where):
            return cls(kind, where, value, name, plugins.load(kind, name, PRESETS if kind == "algorithms" else ()), settings, plugins)

    def make(self) -> Any:
        """Return the part with its settings. Raises `ConfigError` for an object of the wrong kind, an unknown key, or a function that the
        run cannot call."""
        if self.kind in ("engines", "trainers", "trackers"):
            return self._make_settings()
        if self.kind == "losses" and inspect.isfunction(self.target):
            return self._make_loss_of_function()
        if self.kind in ("losses", "corrections", "algorithms"):
            return self._make_object()
        return self._bind()

    def _make_settings(self) -> Any:
        cls = self.target.Settings
        if not is_dataclass(cls):
            problem = f"`Settings` of {singular(self.kind)} {self.name!r} is {cls!r:.80}"
            raise PluginError(f"{problem}. Its plugin must make it a dataclass.")
        return build(cast("type[Any]", cls), self.settings, self.where)

    def _make_object(self) -> Any:
        """A loss, a correction or an algorithm: of its class, or the object that the value is."""
        is_class = isinstance(self.target, type)
        base, expected = EXPECTED.get(self.kind, (object, ""))
        if not (issubclass(self.target, base) if is_class else isinstance(self.target, base)):
            raise ConfigError(f"{self.where} is {self.value!r:.80}. Use {expected}.")
        return build(cast("type[Any]", self.target), self._with_parts(), self.where) if is_class else self.target

    def _bind(self) -> Callable[..., Any]:
        """The function with its settings, tried on no rollouts, so that a setting that it refuses is found before the first step."""
        if not callable(self.target):
            raise ConfigError(f"{self.where} is {self.value!r:.80}. Use a function, or the name of one.")
        function = self.target
        if self.settings:
            parameters = inspect.signature(function).parameters.values()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                check_keys(self.settings, keywords(function), self.where)
            hints = type_hints(function)
            settings = {key: convert(value, hints.get(key, Any), join_key(self.where, key)) for key, value in self.settings.items()}
            function = functools.partial(function, **settings)
        _check_inputs(function, INPUTS[self.kind], f"{self.where} {getattr(self.target, '__qualname__', self.name)!r}")
        if self.kind in EMPTY_INPUTS:
            _try(function, EMPTY_INPUTS[self.kind]())
        return function

    def _with_parts(self) -> dict[str, Any]:
        """The settings as `build` takes them: the correction of a loss made, an algorithm's name where it has that field."""
        settings = dict(self.settings)
        if self.kind == "losses" and settings.get("correction"):
            settings["correction"] = Part.parse("corrections", settings["correction"], f"{self.where}.correction", self.plugins).make()
        if self.kind == "algorithms" and self.name is not None and "name" in {setting.name for setting in fields(self.target)}:
            settings["name"] = self.name
        return settings

    def _make_loss_of_function(self) -> FunctionLoss:
        """A function `(logprobs, old_logprobs, advantages, **settings) -> term` has the settings of every loss besides its own."""
        settings = self._with_parts()
        common = {setting.name for setting in fields(LossSettings)} - {"name"}
        own = {key: value for key, value in settings.items() if key not in common}
        check_keys(own, [*keywords(self.target), *sorted(common)], self.where)
        term = replace(self, settings=own)._bind()
        shared = {key: value for key, value in settings.items() if key in common}
        return build(FunctionLoss, {"name": self.name or self.target.__qualname__, "function": term, **shared}, self.where)


def keywords(function: Callable[..., Any]) -> list[str]:
    """Return the settings of a function: its keywords, and its arguments with a default."""
    parameters = inspect.signature(function).parameters.values()
    return [
        parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty
    ]


@contextmanager
def naming(source: object) -> Generator[None]:
    """Put the file's name, or the key, before the message of a `ConfigError` of the block."""
    try:
        yield
    except ConfigError as error:
        if str(error).startswith(f"{source}: "):
            raise
        raise type(error)(f"{source}: {error}") from error


def call(where: str, part: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that a setting names. `PluginError` says which function raised which error, and where."""
    try:
        return function(*arguments)
    except LightningError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        raise PluginError(f"{where} {named(part)} raised {type(error).__name__}: {error} ({place}). Fix it there.") from error


def named(part: Any) -> str:
    """Return a part's name, quoted, for messages."""
    name = cast("Mapping[str, Any]", part).get("name", part) if isinstance(part, Mapping) else part
    return repr(name) if isinstance(name, str) else repr(getattr(name, "__qualname__", name))


def _check_inputs(function: Callable[..., Any], inputs: tuple[str, ...], name: str) -> None:
    try:
        inspect.signature(function).bind(*inputs)
    except TypeError as error:
        raise ConfigError(f"{name} cannot be called as ({', '.join(inputs)}): {error}. Change its arguments.") from error
    except ValueError:
        return  # a function that is not written in Python may have no signature


def _try(function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
    """Raise errors of ours only: a function need not work without rollouts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(*inputs)
        except LightningError:
            raise
        except Exception:
            return


def build_step_rewards(values: Mapping[str, float], plugins: Registry | None = None) -> tuple[StepReward, ...]:
    """Return the step rewards of a configuration, by the name of a signal or `module:function`. Raises `ConfigError`."""
    signals = {name: Part.parse("step_signals", name, f"step_rewards.{name}", plugins).make() for name in values}
    return tuple(StepReward(name, value, signals[name]) for name, value in values.items())
