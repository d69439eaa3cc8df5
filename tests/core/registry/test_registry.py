from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from agentlightning.contracts import hookspecs
from agentlightning.contracts.hookspecs import hookimpl
from agentlightning.contracts.store import RolloutState
from agentlightning.errors import ConfigError, MissingExtra, PluginError
from agentlightning.registry import builtin
from agentlightning.registry.registry import BASES, KINDS, Registry, load_object, registry, singular
from agentlightning.types import Rollout, Task

HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "agentlightning_spec")]
LIFECYCLE = {
    "rollout_started": {"rollout": Rollout(task=Task("t", None), mode="train")},
    "rollout_finished": {"state": RolloutState(rollout=Rollout(task=Task("t", None), mode="train"), status="succeeded")},
    "step_finished": {"metrics": {"reward": 1.0}},
}


class Good:
    @hookimpl
    def register_engines(self, register: Any) -> None:
        register("good", dict, summary="an engine")


def test_every_hook_is_documented_and_typed() -> None:
    assert HOOKS
    for name in HOOKS:
        hook = getattr(hookspecs, name)
        assert hook.__doc__, name
        assert all(p.annotation is not p.empty for p in inspect.signature(hook).parameters.values()), name


def test_every_hook_is_a_register_hook_of_a_kind_or_has_a_lifecycle_test() -> None:
    assert set(HOOKS) == {f"register_{kind}" for kind in KINDS} | set(LIFECYCLE)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_register_hook_registers_is_found_under_its_name(kind: str) -> None:
    lazy = BASES.get(kind, "json:dumps")
    target: Any = type("Mine", (load_object(lazy),), {}) if kind in BASES else object()

    class Plugin:
        pass

    def implementation(self: Any, register: Any) -> None:
        register("mine", target, summary="one line")
        register("lazy", lazy)

    setattr(Plugin, f"register_{kind}", hookimpl(implementation))
    plugins = Registry({"p": Plugin()})
    assert plugins.broken == {}
    assert plugins.names(kind) == ["lazy", "mine"]
    assert plugins.load(kind, "mine") is target
    assert plugins.load(kind, "lazy") is load_object(lazy)
    assert [(e.kind, e.name, e.plugin, e.summary) for e in plugins.entries(kind)][1] == (kind, "mine", "p", "one line")
    assert [e.name for e in plugins.entries()] == ["lazy", "mine"]


@pytest.mark.parametrize("kind", BASES)
def test_an_object_that_does_not_derive_from_the_base_of_its_kind_is_refused(kind: str) -> None:
    plugin = type("Plugin", (), {f"register_{kind}": hookimpl(lambda self, register: register("mine", dict))})()
    base = BASES[kind].replace(":", ".")
    for name in ("mine", "builtins:dict", "json:dumps"):
        with pytest.raises(PluginError, match=rf"'{name}' is not a subclass of {base}\. Derive its class from it\."):
            Registry({"p": plugin}).load(kind, name)


@pytest.mark.parametrize("name", LIFECYCLE)
def test_a_lifecycle_hook_is_called_and_a_broken_one_is_a_warning(name: str) -> None:
    seen: list[Any] = []
    (argument,) = LIFECYCLE[name]

    def plugin(body: str) -> Any:
        space: dict[str, Any] = {"seen": seen}
        exec(f"def {name}(self, {argument}): {body}", space)
        return type("Plugin", (), {name: hookimpl(space[name])})()

    plugins = Registry({"good": plugin(f"seen.append({argument})"), "bad": plugin("1 / 0"), "shy": plugin("pass")})
    with pytest.warns(RuntimeWarning, match=f"The hook {name} of plugin 'bad' raised ZeroDivisionError"):
        getattr(plugins.hook, name)(**LIFECYCLE[name])
    assert seen == list(LIFECYCLE[name].values())


def test_a_broken_plugin_is_reported_by_name_and_left_out() -> None:
    class Broken:
        @hookimpl
        def register_engines(self, register: Any) -> None:
            register("half", dict)
            raise RuntimeError("no good")

    class Misspelt:
        @hookimpl
        def register_engine(self, register: Any) -> None: ...

    class Exits:
        @hookimpl
        def register_engines(self, register: Any) -> None:
            sys.exit("bye")

    gone = importlib.metadata.EntryPoint("gone", "no_such_module.plugin", "agentlightning")
    plugins = Registry({"broken": Broken(), "misspelt": Misspelt(), "exits": Exits(), "gone": gone, "good": Good()})
    assert plugins.names("engines") == ["good"]
    assert plugins.broken["broken"] == "RuntimeError: no good"
    assert "register_engine" in plugins.broken["misspelt"]
    assert "bye" in plugins.broken["exits"]
    assert "no_such_module" in plugins.broken["gone"]
    assert not plugins.manager.has_plugin("broken")
    with pytest.raises(ConfigError, match=r"Unknown engine 'half'.*Skipped plugins: broken \(RuntimeError: no good\)"):
        plugins.load("engines", "half")


def test_an_unknown_name_says_the_nearest_known_one() -> None:
    plugins = Registry({"good": Good()})
    with pytest.raises(ConfigError, match=r"^Unknown engine 'god'\. Did you mean 'good'\? Use one of good\.$"):
        plugins.load("engines", "god")
    with pytest.raises(ConfigError, match=r"^Unknown loss 'ppo'\. There is none\.$"):
        plugins.load("losses", "ppo")


def test_a_missing_extra_says_what_to_install() -> None:
    class Plugin:
        @hookimpl
        def register_engines(self, register: Any) -> None:
            register("fast", "x:y", extra="fast", needs=("json", "no_such_library", "no_such.library"))
            register("bare", "x:y", needs=("no_such_library",))

    plugins = Registry({"p": Plugin()})
    assert plugins.entry("engines", "fast").missing == ("no_such_library", "no_such.library")
    with pytest.raises(MissingExtra, match=r"Engine 'fast' needs no_such_library, .* Run: pip install 'agentlightning\[fast\]'$"):
        plugins.load("engines", "fast")
    with pytest.raises(MissingExtra, match=r"Run: pip install no_such_library$"):
        plugins.load("engines", "bare")


def test_a_name_that_is_taken_leaves_the_second_plugin_out() -> None:
    class Twice:
        @hookimpl
        def register_engines(self, register: Any) -> None:
            register("same", dict)
            register("same", list)

    plugins = Registry({"first": Good(), "second": Good(), "twice": Twice()})
    assert plugins.broken["second"] == "PluginError: Plugin 'first' registered engine 'good' before. Choose another name."
    assert "Plugin 'twice' registered engine 'same' before" in plugins.broken["twice"]
    assert plugins.names("engines") == ["good"]


def test_a_target_that_cannot_be_opened_is_the_plugins_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_a_library.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)

    class Plugin:
        @hookimpl
        def register_engines(self, register: Any) -> None:
            register("gone", "no_such_module:Engine")
            register("misnamed", "json:dumbs")
            register("inner", "needs_a_library:Engine")

    plugins = Registry({"p": Plugin()})
    for name, reason in {"gone": "No module 'no_such_module'", "misnamed": "Did you mean 'dumps'", "inner": "No module named"}.items():
        with pytest.raises(PluginError, match=f"Plugin 'p' registered engine '{name}', which does not load: .*{reason}"):
            plugins.load("engines", name)


def test_an_object_that_no_plugin_registered_is_named_by_its_module() -> None:
    import json

    assert Registry({}).load("advantages", "json:dumps") is json.dumps
    assert load_object("json:JSONDecoder.decode") is json.JSONDecoder.decode
    with pytest.raises(ConfigError, match="Unknown store 'memory:x'"):
        Registry({}).load("stores", "memory:x")


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("json", "Write it as 'module:attribute'"),
        (":x", "Write it as 'module:attribute'"),
        ("no_such_module:x", "No module 'no_such_module' is on the import path"),
        ("json:dumbs", "Did you mean 'dumps'"),
    ],
)
def test_a_reference_that_names_nothing_says_why(reference: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_object(reference)


def test_first_party_plugins_come_in_by_the_entry_points_of_anybody() -> None:
    plugins = registry()
    assert plugins is registry()
    assert plugins.entry("advantages", "grpo").plugin == "builtin"
    for group in ("credits", "advantages", "losses", "corrections", "samplers"):
        for entry in plugins.entries(group):
            if entry.plugin == "builtin":
                assert entry.summary
                assert callable(entry.load())


def test_the_builtin_plugin_is_whole() -> None:
    assert Registry({"builtin": builtin}).broken == {}
    assert [singular(kind) for kind in ("losses", "engines", "advantages", "stores")] == ["loss", "engine", "advantage", "store"]


def test_an_entry_point_of_the_backport_is_one_too() -> None:
    """litellm imports `importlib_metadata`, which then makes the entry points of the standard library as well."""

    class Backport:
        name, value, group = "sqlite", "agentlightning_sqlite.plugin", "agentlightning"

        def load(self) -> Any:
            return importlib.import_module(self.value)

    plugins = Registry({"sqlite": Backport()})
    assert plugins.broken == {}
    assert "sqlite" in plugins.names("stores")
