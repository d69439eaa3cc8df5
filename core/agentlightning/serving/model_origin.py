"""Where a trained model comes from: the model before training, and its licence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from agentlightning.config.models import ADAPTER, find_model, is_run
from agentlightning.errors import LightningError
from agentlightning.registry.registry import registry
from agentlightning.training.recorded import run_config
from agentlightning.training.run_folder import RunFolder

UNKNOWN = "unknown"
LICENCES = {
    r"\s*Apache License\s+Version 2\.0": "apache-2.0",
    r"(The )?MIT License": "mit",
}
"""The hub's names of licences, by the start of their text."""
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Origin:
    """The model before training."""

    name: str
    """Its name, without a path of this machine."""
    hub_name: str | None
    """Its id on the hub; None: unknown."""
    licence: str
    """The hub's name of its licence, or `unknown`."""
    licence_file: Path | None
    """The text of the licence."""


def model_origin(model: str) -> Origin:
    """Return the origin of a run's `model`. A model that a run trained has the origin of that run's model.

    The licence is that of the model card, else of the file LICENSE. Nothing is guessed.
    """
    path = Path(model)
    if model not in registry().names("models") and path.is_dir():
        earlier = path.parent.parent
        if path.parent.name == "checkpoints" and is_run(earlier):
            return model_origin(str(run_config(RunFolder(earlier)).get("model", "")))
        if (path / ADAPTER).is_file():
            base = str(json.loads((path / ADAPTER).read_bytes()).get("base_model_name_or_path") or "")
            return model_origin(str(path / base) if (path / base).is_dir() else base)
    name = path.name if path.exists() else model
    hub_name = name if HUB_NAME.fullmatch(model) and not path.exists() else None
    card, licence_file = _card(model), next((file for folder in _folders(model) if (file := _licence_file(folder))), None)
    licence = card.get("license") or (_licence_of(licence_file) if licence_file is not None else None) or UNKNOWN
    bases: Any = card.get("base_model")
    base: Any = next(iter(cast("list[Any]", bases)), None) if isinstance(bases, list) else bases
    return Origin(name, hub_name or (base if isinstance(base, str) and HUB_NAME.fullmatch(base) else None), str(licence), licence_file)


def _folders(model: str) -> Iterator[Path]:
    """The folders that may hold the model card: of the files themselves, and of their conversion."""
    path = Path(model)
    if path.exists():
        yield path if path.is_dir() else path.parent
    try:
        converted = Path(find_model(model, weights=False).path)
    except LightningError:  # it is gone, or the hub cannot be reached
        return
    if converted.is_dir():
        yield converted


def _card(model: str) -> dict[str, Any]:
    """The facts at the head of a model card; empty without one."""
    cards = [folder / "README.md" for folder in _folders(model)]
    if HUB_NAME.fullmatch(model) and not Path(model).exists():
        cards += _hub_card(model)
    for card in cards:
        if card.is_file() and (facts := card_facts(card.read_text(encoding="utf-8", errors="replace"))):
            return facts
    return {}


def _hub_card(name: str) -> list[Path]:
    """The model card of a hub id, from the hub or its cache."""
    import huggingface_hub

    hub: Any = huggingface_hub
    try:
        return [Path(hub.hf_hub_download(name, "README.md"))]
    except (OSError, ValueError):  # no network, no such model, no card
        return []


def card_facts(text: str) -> dict[str, Any]:
    """Return the facts at the head of a model card; empty without any."""
    from huggingface_hub import ModelCard

    if not text.lstrip().startswith("---"):
        return {}  # the library would log it
    try:
        return ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # not YAML, or not of the form of a card
        return {}


def _licence_file(folder: Path) -> Path | None:
    return next((folder / name for name in LICENCE_FILES if (folder / name).is_file()), None)


def _licence_of(file: Path) -> str | None:
    text = file.read_text(encoding="utf-8", errors="replace")
    return next((name for start, name in LICENCES.items() if re.match(start, text)), None)
