"""The settings that decide how messages become tokens, saved with the weights, so that a trained model serves as it was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
    """`auto`, `template`, `chatml`, a family of the `renderers` library, or `"module:function"`."""
    chat_template: str | None = None
    """Jinja text instead of the tokenizer's own."""
    template_arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Variables of the template, such as `{"enable_thinking": False}`."""
    history: HistoryMode = "template"
    """`template`: earlier turns as the template writes them now. `exact`: earlier turns as they were sampled, always."""
    special_tokens: bool = False
    """Whether the characters of special tokens in messages become special tokens."""


def rendering_settings(
    renderer: str, chat_template: str | None, template_arguments: Mapping[str, Any], history: HistoryMode, folder: Path
) -> RenderingSettings:
    """The settings of a run. `chat_template` is a file, relative to `folder`. Raises `ConfigError` if it cannot be read."""
    text = None
    if chat_template is not None:
        try:
            text = (folder / chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"chat_template is {chat_template!r}, and reading it fails: {error}. Name a text file with Jinja.") from error
    return RenderingSettings(renderer, text, dict(template_arguments), history)


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
