"""The setting `prompts`: texts by name, files of them, or a run that found them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from agentlightning.config.models import find_run, run_result
from agentlightning.errors import ConfigError

PromptsSetting = dict[str, str] | str


def prompts_under(prompts: PromptsSetting, base: Path) -> PromptsSetting:
    """Return the setting with the text of each file, and the folder of a run. Relative paths start at `base`. Raises `ConfigError`."""
    if isinstance(prompts, str):
        run = find_run(str(base / prompts)) or find_run(prompts)
        if run is None:
            raise ConfigError(f"prompts is {prompts!r}, which is no run. Name a run of algorithm 'gepa', or add a table [prompts].")
        return str(run)
    return {name: _text(name, text, base) for name, text in prompts.items()}


def prompt_texts(prompts: PromptsSetting) -> dict[str, str]:
    """Return the texts by name. Raises `ConfigError` for a run that found none."""
    return prompts if isinstance(prompts, dict) else run_prompts(Path(prompts))


def run_prompts(run: Path) -> dict[str, str]:
    """Return the best prompts of a run of `gepa`. Raises `ConfigError` for any other."""
    search = cast("Mapping[str, Any]", run_result(run).get("prompts") or {})
    if "best" not in search:
        raise ConfigError(f"Run {run.name} found no prompts. Name a run of algorithm 'gepa' that has ended or was stopped.")
    return {str(name): str(text) for name, text in cast("Mapping[str, str]", search["best"]).items()}


def _text(name: str, text: str, base: Path) -> str:
    if "\n" in text or not text.endswith((".md", ".txt")):
        return text
    try:
        return (base / Path(text).expanduser()).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts.{name}: {text!r} cannot be read: {error}. Check the path of the prompt.") from error
