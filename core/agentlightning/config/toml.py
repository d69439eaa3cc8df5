"""Settings written as TOML, so that `build` reads them back equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import tomli_w

from agentlightning.errors import ConfigError
from agentlightning.settings import join_key


def to_toml(settings: Any) -> str:
    """Return a dataclass of settings as TOML."""
    return tomli_w.dumps(plain_settings(settings, none=False))  # TOML has no null; `build` reads false as none where none is possible


def plain_settings(settings: Any, *, none: bool | None) -> dict[str, Any]:
    """Return a dataclass of settings as a table of plain values. `none` stands for None; if it is not None, settings that are absent by
    default are left out. Raises `ConfigError` for a value that is not plain."""
    return _plain(settings, none)


def _plain(value: Any, none: bool | None, at: str = "") -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        settings = {setting.name: (getattr(value, setting.name), setting.default) for setting in fields(value) if setting.init}
        return {
            name: _plain(item, none, join_key(at, name))
            for name, (item, default) in settings.items()
            if none is None or (item, default) != (None, None)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item, none, f"{at}.{key}") for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item, none, f"{at}[{number}]") for number, item in enumerate(cast("list[Any]", value))]
    if value is None:
        return none
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, str | bool | int | float):
        return value
    raise ConfigError(f"{at} is {value!r:.80} of type {type(value).__name__}. TOML cannot hold it; give its name instead.")
