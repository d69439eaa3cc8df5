"""The JSON schema of config.toml, from the types of the settings, so that an editor completes and checks the file.

Each registered part gets its own table of settings, as far as its class is light to import; other tables stay open.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_origin

import msgspec

from agentlightning.config.parts import keywords
from agentlightning.config.presets import PRESETS
from agentlightning.config.schema import DEFAULT_PARTS, Config
from agentlightning.contracts.loss import Correction, LossSettings
from agentlightning.errors import PluginError
from agentlightning.registry.registry import Entry, Registry, registry, singular
from agentlightning.settings import MAX, is_required, type_hints, union_choices

Schema = dict[str, Any]
NAMES = ("samplers", "adapters")
"""Kinds of parts without settings."""
LIMITS = ("minimum", "maximum")
AGENT_AND_TASKS: Schema = {
    "if": {"required": ["replay"]},
    "then": {"not": {"required": ["agent", "command"]}},
    "else": {"required": ["tasks"], "oneOf": [{"required": ["agent"]}, {"required": ["command"]}]},
}
"""`Config` takes an agent or a command, with tasks; a replay has its own tasks and needs no agent."""


def config_schema(plugins: Registry | None = None) -> Schema:
    """Return the JSON schema (draft 2020-12) of a config file, with the parts of all plugins."""
    return _Writer(plugins or registry()).config()


class _Writer:
    """Collects a definition for each kind of part that the settings name."""

    def __init__(self, plugins: Registry) -> None:
        self._plugins = plugins
        self._definitions: dict[str, Schema] = {}

    def config(self) -> Schema:
        schema = self._object(Config)
        schema["required"] = [name for name in schema.get("required", []) if name != "name"]
        one = {"$ref": schema["properties"]["algorithm"].pop("$ref")}
        stages = {"type": "array", "items": one, "minItems": 2, "maxItems": 2}
        schema["properties"]["algorithm"] |= {"if": {"type": "array"}, "then": stages, "else": one}
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Agent Lightning: config.toml"}
        return {**head, **schema, **AGENT_AND_TASKS, "$defs": self._definitions}

    def _object(self, cls: type[Any]) -> Schema:
        """The table of a dataclass; its docstrings are the descriptions."""
        hints, texts = type_hints(cls), field_docstrings(cls)
        settable = [setting for setting in fields(cls) if setting.init]
        properties: Schema = {}
        for setting in settable:
            value = self._value(hints[setting.name])
            if value is not None:
                parts = (texts.get(setting.name), value.get("description"))
                description = " ".join(f"{part[0].upper()}{part[1:]}" for part in parts if part)
                properties[setting.name] = {**value, **({"description": description} if description else {})}
                properties[setting.name] |= _default(setting.default)
        required = [setting.name for setting in settable if is_required(setting) and setting.name in properties]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def _value(self, hint: Any) -> Schema | None:
        """The schema of a type; None where TOML can hold no such value."""
        kinds = [meta.extra["kind"] for meta in get_args(hint)[1:] if isinstance(meta, msgspec.Meta) and meta.extra]
        if get_origin(hint) is Annotated and kinds:
            return self._reference(kinds[0])
        if hint in (Correction, LossSettings):
            return self._reference("corrections" if hint is Correction else "losses")
        choices = union_choices(hint)
        if len(choices) > 1:
            schemas = [{"const": False} if choice is type(None) else self._value(choice) for choice in choices]
            return {"anyOf": [schema for schema in schemas if schema is not None]}
        if is_dataclass(hint):
            return self._object(cast("type[Any]", hint))
        if get_origin(hint) is dict and is_dataclass(get_args(hint)[1]):
            return {"type": "object", "additionalProperties": self._object(get_args(hint)[1])}
        if get_origin(hint) in (list, tuple) and get_args(hint)[-1:] == (Ellipsis,):
            return {"type": "array", "items": self._value(get_args(hint)[0])}
        if hint is Path:
            return {"type": "string"}
        try:
            return _finite(msgspec.json.schema(hint))
        except TypeError:
            return None

    def _reference(self, kind: str) -> Schema:
        if kind not in self._definitions:
            self._definitions[kind] = {}  # a part may name a part of its own kind
            self._definitions[kind] = self._kind(kind)
        return {"$ref": f"#/$defs/{kind}"}

    def _kind(self, kind: str) -> Schema:
        """A registered name, `module:attribute`, or a table of a name and settings."""
        entries = list(self._plugins.entries(kind))
        names = [{"const": entry.name, "description": entry.summary} for entry in entries]
        if kind == "algorithms":
            names += [{"const": preset, "description": f"`lightning` with {settings}"} for preset, settings in PRESETS.items()]
        name: Schema = {"anyOf": [*names, {"type": "string", "pattern": ".:."}]}
        if kind in NAMES:
            return name
        default = "local" if kind == "runners" else DEFAULT_PARTS.get(singular(kind))
        tables = [{"if": _has_name(entry.name, entry.name == default), "then": self._table(entry)} for entry in entries]
        table: Schema = {"type": "object", "properties": {"name": name}, "allOf": tables}
        if default is not None:
            return {"if": {"type": "object"}, "then": table, "else": name}
        if kind == "advantages":
            per_agent = {"additionalProperties": {"$ref": "#/$defs/advantages"}}
            table = {"if": {"required": ["name"]}, "then": table, "else": per_agent}
        else:
            table["required"] = ["name"]
        return {"if": {"type": "object"}, "then": table, "else": name}

    def _table(self, entry: Entry) -> Schema:
        schema = self._settings(entry) or {"type": "object", "properties": {}, "required": []}
        schema["properties"] = {**schema["properties"], "name": {"const": entry.name, "description": entry.summary}}
        schema["required"] = [name for name in schema["required"] if name != "name"]
        return schema

    def _settings(self, entry: Entry) -> Schema | None:
        """The settings of a part; None where its class cannot be imported here."""
        try:
            target: Any = entry.load_settings() if entry.kind in ("engines", "trainers", "runners", "trackers") else entry.load()
        except PluginError:
            return None
        if is_dataclass(target):
            return self._object(cast("type[Any]", target))
        return self._keywords(target) if inspect.isfunction(target) else None

    def _keywords(self, function: Callable[..., Any]) -> Schema:
        hints = type_hints(function)
        properties: Schema = {}
        for name in keywords(function):
            value, default = self._value(hints.get(name, Any)), inspect.signature(function).parameters[name].default
            if value is not None:
                properties[name] = {**value, **_default(default)}
        description = " ".join((inspect.getdoc(function) or "").split())
        head = {"description": description} if description else {}
        return {"type": "object", **head, "properties": properties, "required": [], "additionalProperties": False}


@cache
def field_docstrings(cls: type[Any]) -> Mapping[str, str]:
    """Return the text below each field of a class and its bases, by the field's name."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]).body
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                texts[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value))
    return texts


def _has_name(name: str, default: bool) -> Schema:
    """Whether a table has this name. A table without a name has the default one."""
    return {"properties": {"name": {"const": name}}, **({} if default else {"required": ["name"]})}


def _finite(schema: Schema) -> Schema:
    """Without the limits that only keep infinity out."""
    cut = {key: value for key, value in schema.items() if not (key in LIMITS and abs(value) >= MAX)}
    nested = {key: _finite(cast(Schema, value)) for key, value in cut.items() if isinstance(value, dict)}
    return {**cut, **nested}


def _default(value: object) -> Schema:
    """The default of a setting, where TOML can hold it."""
    if isinstance(value, tuple) and value:
        return {"default": list(cast("tuple[Any, ...]", value))}
    return {"default": value} if isinstance(value, str) or (isinstance(value, bool | int | float) and abs(value) <= MAX) else {}
