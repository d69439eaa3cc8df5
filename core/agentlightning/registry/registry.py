"""Finds plugins, and imports a registered object when somebody asks for its name.

A broken plugin is reported by name and skipped; the others work. A name whose libraries are missing says what to install. An unknown name
suggests the nearest registered one.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pluggy

from agentlightning.contracts import hookspecs
from agentlightning.errors import ConfigError, MissingExtra, PluginError, unknown

GROUP = "agentlightning"
KINDS = (
    "stores", "engines", "trainers", "runners", "adapters", "algorithms", "step_signals", "credits", "advantages", "losses", "corrections",
    "filters", "samplers", "models", "converters", "renderers", "trackers", "commands", "benchmarks", "checks",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered name."""

    kind: str
    name: str
    target: Any
    """The object, or `module:attribute`."""
    plugin: str
    summary: str = ""
    extra: str | None = None
    needs: tuple[str, ...] = ()
    settings: str | type[Any] | None = None
    """The settings class of an engine, a trainer or a tracker, light to import."""
    elsewhere: tuple[str, ...] = ()
    """Modules that may lie in another environment."""

    @property
    def what(self) -> str:
        """The kind in the singular."""
        return singular(self.kind)

    @property
    def missing(self) -> tuple[str, ...]:
        """Modules in `needs` that are not installed."""
        return tuple(name for name in self.needs if not _installed(name))

    @property
    def not_here(self) -> tuple[str, ...]:
        """Modules in `elsewhere` that this environment lacks."""
        return tuple(name for name in self.elsewhere if not _installed(name))

    @property
    def install(self) -> str:
        """The command that installs the missing modules."""
        return f"pip install 'agentlightning[{self.extra}]'" if self.extra else f"pip install {' '.join(self.needs)}"

    def load(self) -> Any:
        """Import the registered object. Raises `MissingExtra` or `PluginError`."""
        if self.missing:
            raise MissingExtra(
                f"{self.what.capitalize()} {self.name!r} needs {', '.join(self.missing)}, which is not installed. Run: {self.install}"
            )
        if not isinstance(self.target, str):
            return self.target
        try:
            return load_object(self.target)
        except Exception as error:
            reason = str(error) if isinstance(error, ConfigError) else f"{self.target} cannot be imported: {type(error).__name__}: {error}"
            raise PluginError(f"Plugin {self.plugin!r} registered {self.what} {self.name!r}, which does not load: {reason}") from error

    def load_settings(self) -> Any:
        """Return the settings class without the part itself; None where the plugin names none."""
        return load_object(self.settings) if isinstance(self.settings, str) else self.settings


BASES = {
    "engines": "agentlightning.contracts.engine:Engine",
    "trainers": "agentlightning.contracts.trainer:Trainer",
    "algorithms": "agentlightning.algorithms.base:Algorithm",
    "samplers": "agentlightning.config.samplers:Sampler",
    "trackers": "agentlightning.contracts.tracker:Tracker",
}
"""The base class of each kind that has one. Its defaults are why no caller asks a part for an attribute that may be missing."""


class Registry:
    """The entries of all plugins, by kind and name."""

    def __init__(self, plugins: Mapping[str, Any]) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        self.broken: dict[str, str] = {}
        """The reason of each plugin that was skipped."""
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        for name, plugin in plugins.items():
            self.add(name, plugin)

    def add(self, name: str, plugin: Any) -> None:
        """Add a plugin: a module, an object with hook implementations, or an entry point of one."""
        staged: list[Entry] = []
        try:
            # By its attributes: where the backport `importlib_metadata` is imported (litellm does), entry points are of its class.
            module = plugin.load() if hasattr(plugin, "load") and hasattr(plugin, "group") else plugin
            self.manager.register(module, name)
            self.manager.check_pending()  # finds a misspelt hook
            for kind in KINDS:
                implementation = getattr(module, f"register_{kind}", None)
                if implementation is not None:
                    implementation(_register(kind, name, staged))
            own: dict[tuple[str, str], Entry] = {}
            for entry in staged:
                other = self._entries[entry.kind].get(entry.name) or own.get((entry.kind, entry.name))
                if other is not None:
                    raise PluginError(f"Plugin {other.plugin!r} registered {entry.what} {entry.name!r} before. Choose another name.")
                own[entry.kind, entry.name] = entry
        except (Exception, SystemExit) as error:
            self.broken[name] = f"{type(error).__name__}: {error}"
            if self.manager.has_plugin(name):
                self.manager.unregister(name=name)
            return
        for entry in staged:
            self._entries[entry.kind][entry.name] = entry

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """Yield the entries, in order of kind and name."""
        for kind_name in KINDS if kind is None else (kind,):
            yield from (self._entries[kind_name][name] for name in sorted(self._entries[kind_name]))

    def names(self, kind: str) -> list[str]:
        return sorted(self._entries[kind])

    def entry(self, kind: str, name: str, others: Iterable[str] = ()) -> Entry:
        """Return the entry of a name. The `ConfigError` for an unknown name suggests the nearest one, also of `others`."""
        if name in self._entries[kind]:
            return self._entries[kind][name]
        skipped = [f"{plugin} ({reason})" for plugin, reason in self.broken.items()]
        note = f" Skipped plugins: {', '.join(skipped)}." if skipped else ""
        raise ConfigError(unknown(singular(kind), name, sorted({*self.names(kind), *others})) + note)

    def load(self, kind: str, name: str, others: Iterable[str] = ()) -> Any:
        """Return the object of a name. `module:attribute` names an object that no plugin registered."""
        direct = ":" in name and name not in self._entries[kind] and kind != "stores"
        target = load_object(name) if direct else self.entry(kind, name, others).load()
        base = load_object(BASES[kind]) if kind in BASES else object
        if kind in BASES and not (isinstance(target, type) and issubclass(target, base)):
            raise PluginError(
                f"{singular(kind).capitalize()} {name!r} is not a subclass of {BASES[kind].replace(':', '.')}. Derive its class from it."
            )
        return target

    @property
    def hook(self) -> Any:
        """The lifecycle hooks: `registry().hook.step_finished(metrics=...)`. An error in one is a warning with the plugin's name."""
        return _Hooks(self.manager)


class _Hooks:
    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Callable[..., None]:
        caller = getattr(self._manager.hook, name)

        def call(**arguments: Any) -> None:
            for implementation in reversed(caller.get_hookimpls()):
                try:
                    implementation.function(*(arguments[argument] for argument in implementation.argnames))
                except Exception as error:
                    message = f"The hook {name} of plugin {implementation.plugin_name!r} raised {type(error).__name__}: {error}"
                    warnings.warn(message, RuntimeWarning, stacklevel=2)

        return call


def _register(kind: str, plugin: str, staged: list[Entry]) -> hookspecs.Register:
    """The argument of a plugin's `register_` hook."""

    def register(name: str, target: str | Any, **options: Any) -> None:
        staged.append(Entry(kind, name, target, plugin, **options))

    return register


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its package is missing, or it is half loaded
        return False


@cache
def registry() -> Registry:
    """Return the registry of this process, with every entry point of the group `agentlightning`. (Cached: entry points do not change.)"""
    points = importlib.metadata.entry_points(group=GROUP)
    return Registry({point.name: point for point in points})


def singular(kind: str) -> str:
    """Return the singular in words: `loss` of `losses`, `step signal` of `step_signals`."""
    kind = kind.replace("_", " ")
    return kind.removesuffix("es") if kind.endswith("sses") else kind.removesuffix("s")


def load_object(reference: str) -> Any:
    """Return the object that `module:attribute` names. Raises `ConfigError` for one that does not exist."""
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{reference!r} does not name an object. Write it as 'module:attribute'.")
    if module_name.endswith(".py"):
        *folder, file = module_name.replace("\\", "/").split("/")
        at = f" and run from {'/'.join(folder)!r}, or set path" if folder else ""
        raise ConfigError(f"{reference!r} names a file. Write '{file.removesuffix('.py')}:{attribute}' for its module{at}.")
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigError(
                f"{reference!r}: No module {error.name!r} is on the import path. Run from the folder that holds it, or install it."
            ) from error
        raise
    for part in attribute.split("."):
        if not hasattr(value, part):
            names = [name for name in dir(value) if not name.startswith("_")]
            raise ConfigError(f"{reference!r}: " + unknown("name", part, names[:40], where=f"in module {module_name!r}"))
        value = getattr(value, part)
    return value
