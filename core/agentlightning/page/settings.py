"""The settings of a run, each with its default, so that a reader sees what was chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeAlias, cast

from agentlightning.config.json_schema import config_schema
from agentlightning.config.settings_reference import Setting, sections, shown_value
from agentlightning.training.recorded import run_config
from agentlightning.training.run_folder import RunFolder
from agentlightning.types import JSON

Table: TypeAlias = Mapping[str, Any]
Reference: TypeAlias = Mapping[str, Mapping[str, Setting]]
"""The documented settings, by section and name."""


def settings(run: RunFolder) -> list[dict[str, JSON]]:
    """Return the settings of a run by section."""
    config = run_config(run)
    reference = _reference()
    result = [{"title": "run", "settings": list(_lines(config, reference["top level"]))}]
    for key, table in _tables(config):
        name = table.get("name")
        titles = [f'{key} = "{name}"', f"[{key}]"]
        documented = next((reference[title] for title in titles if title in reference), dict[str, Setting]())
        result.append({"title": f"[{key}]", "settings": list(_lines(table, documented))})
    return [section for section in result if section["settings"]]


@cache
def _reference() -> Reference:
    return {section.title: {setting.name: setting for setting in section.settings} for section in sections(config_schema())}


def _tables(config: Table, above: str = "") -> Iterator[tuple[str, Table]]:
    """The tables of a file with their names: `algorithm`, `algorithm.loss`."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            name = f"{above}.{key}" if above else key
            yield name, cast(Table, value)
            yield from _tables(cast(Table, value), name)


def _lines(table: Table, reference: Mapping[str, Setting]) -> Iterator[dict[str, JSON]]:
    """The settings of one table. `default` is None where there is none: the setting is required, or no reference knows it."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            continue
        setting = reference.get(name)
        default = None if setting is None or setting.default == "required" else setting.default
        text = shown_value(value)
        is_default = text == default or (default == "" and text in ("false", "[]"))  # TOML writes a setting that is off as false
        yield {
            "name": name,
            "value": text,
            "default": default,
            "differs": default is not None and not is_default,
            "required": default is None,
            "text": "" if setting is None else setting.text,
        }
