"""Unknown keys of a config file: which table they belong to, and what the field's other names mean here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

from agentlightning.errors import ConfigError, PluginError, unknown
from agentlightning.registry.registry import Registry
from agentlightning.settings import in_table, type_hints, union_choices


def check_config_keys(config: type[Any], parts: Mapping[str, tuple[str, str]], data: Mapping[str, Any], plugins: Registry) -> None:
    """Raise `ConfigError` for the first unknown key of a config file, at the top or in a table.

    `config`: the dataclass of the file. `parts`: (kind, default name) of each table whose `name` chooses its settings.
    """
    tables = _tables(config, parts, data, plugins)
    for where, keys in tables.items():
        table = data if not where else data.get(where)
        for key in cast("Mapping[str, Any]", table) if isinstance(table, Mapping) else ():
            if key not in keys:
                raise ConfigError(_advice(key, where, tables))


def _tables(config: type[Any], parts: Mapping[str, tuple[str, str]], data: Mapping[str, Any], plugins: Registry) -> dict[str, list[str]]:
    """The keys of each table whose settings are known; the top of the file is the table `""`."""
    tables = {"": [setting.name for setting in fields(config)]}
    for name, hint in type_hints(config).items():
        for choice in union_choices(hint):
            if is_dataclass(choice) and name not in parts:
                tables[name] = [setting.name for setting in fields(choice) if setting.init]
    for name, (kind, default) in parts.items():
        table = data.get(name, {})
        chosen = cast("Mapping[str, Any]", table).get("name", default) if isinstance(table, Mapping) else None
        entry = next((entry for entry in plugins.entries(kind) if entry.name == chosen), None)
        try:
            settings: Any = None if entry is None else entry.load() if kind == "algorithms" else entry.load_settings()
        except PluginError:  # not installed here; the part says so when it is made
            continue
        if is_dataclass(settings):
            tables[name] = list(dict.fromkeys(["name", *(setting.name for setting in fields(settings) if setting.init)]))
    return tables


def _advice(key: str, where: str, tables: Mapping[str, list[str]]) -> str:
    places = [f"[{table}]" if table else "the top level, above the first [table]" for table, keys in tables.items() if key in keys]
    if places:
        return f"Unknown key {key!r} {in_table(where)}. It belongs to {' or '.join(places)}."
    return unknown("key", key, tables[where], where=in_table(where), elsewhere=_renamed(key, where, tables))


def _renamed(key: str, where: str, tables: Mapping[str, list[str]]) -> str:
    """` Did you mean 'lr' in [trainer]?` of `learning_rate` in another table; empty if no table has another name of the key."""
    for name in OTHER_NAMES.get(key, ()):
        for table, keys in tables.items():
            if name in keys:
                return f" Did you mean {name!r}{'' if table == where else ' ' + in_table(table)}?"
    return ""


OTHER_NAMES = {
    "batch_size": ("tasks_per_step",),
    "train_batch_size": ("tasks_per_step",),
    "dataset": ("tasks",),
    "train_tasks": ("tasks",),
    "val_tasks": ("eval_tasks",),
    "test_tasks": ("eval_tasks",),
    "max_steps": ("steps",),
    "learning_rate": ("lr",),
    "lora_r": ("lora_rank",),
    "max_grad_norm": ("clip_norm",),
    "num_generations": ("group_size",),
    "rollouts_per_task": ("group_size",),
    "max_new_tokens": ("max_tokens",),
    "max_completion_length": ("max_tokens",),
    "num_workers": ("workers",),
    "output_dir": ("folder",),
    "report_to": ("trackers",),
}
"""What other trainers call a setting, and its name here."""
