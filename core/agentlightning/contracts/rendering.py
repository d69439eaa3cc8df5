"""The settings that decide how messages become tokens, saved with the weights, so that a trained model serves as it was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from agentlightning.errors import ConfigError

HistoryMode: TypeAlias = Literal["template", "exact"]
FILE = "rendering.json"
"""The settings beside the weights."""


@dataclass(frozen=True, slots=True)
class RenderingSettings:
    """How a run renders messages."""

    renderer: str = "auto"
    """`auto`, `template`, `text`, `chatml`, a family of the `renderers` library, or `"module:function"`."""
    chat_template: str | None = None
    """Jinja text instead of the tokenizer's own."""
    template_arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Variables of the template, such as `{"enable_thinking": False}`."""
    history: HistoryMode = "template"
    """`template`: earlier turns as the template writes them now. `exact`: earlier turns as they were sampled, always."""
    special_tokens: bool = False
    """Whether the characters of special tokens in messages become special tokens."""


@dataclass(frozen=True, slots=True)
class RenderingChoices:
    """What a user sets of `RenderingSettings`. None, or no arguments: as the weights were trained."""

    renderer: str | None = None
    chat_template: str | None = None
    """A Jinja file."""
    template_arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    history: HistoryMode | None = None
    special_tokens: bool | None = None

    def over(self, saved: RenderingSettings) -> RenderingSettings:
        """Return the saved settings with these on top. Raises `ConfigError` if `chat_template` cannot be read."""
        choices = {name: value for name in self.__slots__ if (value := getattr(self, name)) not in (None, {})}
        if self.chat_template is not None:
            choices["chat_template"] = _read_template(self.chat_template)
        return replace(saved, **choices)

    def used(self) -> list[str]:
        """Return the names of the settings that are set."""
        return [name for name in self.__slots__ if getattr(self, name) not in (None, {})]


def _read_template(file: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template is {file!r}, and reading it fails: {error}. Name a text file with Jinja.") from error


def save_rendering(folder: Path, settings: RenderingSettings) -> None:
    """Write the settings beside the weights. Defaults leave no file."""
    if settings != RenderingSettings():
        (folder / FILE).write_text(json.dumps(asdict(settings), ensure_ascii=False, indent=1), encoding="utf-8")


def saved_rendering(folder: Path) -> RenderingSettings:
    """Return the settings beside the weights, or the defaults. Raises `ConfigError` for a file that is not ours."""
    file = folder / FILE
    if not file.is_file():
        return RenderingSettings()
    try:
        return RenderingSettings(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file} does not hold the settings of a renderer: {error}. Correct it, or remove it.") from error
