"""`agl export`: the weights of a run as a folder that other programs load with `from_pretrained`, with a model card."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentlightning.config.models import best_weights, find_model
from agentlightning.contracts.rendering import save_rendering
from agentlightning.errors import ConfigError, MissingExtra
from agentlightning.files import disk_errors
from agentlightning.serving.model_card import CHART, model_card
from agentlightning.serving.model_origin import Origin, model_origin
from agentlightning.training.recorded import run_config, run_rendering
from agentlightning.training.run_folder import RunFolder

PATTERNS = (
    "model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json",
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "spiece.model", "chat_template*", "processor_config.json", "preprocessor_config.json", "*.py", "rendering.json",
)  # fmt: skip
"""Files of a model. The other files of a checkpoint hold the state of the trainer."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A folder with the weights of a run."""

    folder: Path
    step: int
    """The step of the weights; 0: the model before training."""
    reason: str
    """Why these weights."""
    origin: Origin
    """The model before training."""


def export_run(run: RunFolder, folder: Path, policy: str | None = None) -> Exported:
    """Write the best weights of a run, their tokenizer, chat template and generation config, and a model card into a new folder.

    The folder holds the full model: LoRA is merged, and layers that were not trained are in it. `policy`: one of several. Raises
    `ConfigError` for a folder that is not empty, and `RunError` for a run without weights.
    """
    if folder.suffix.lower() == ".gguf":
        raise ConfigError(
            f"{folder} is a GGUF file, and no Python package converts models to GGUF. Export to a folder, then run llama.cpp's "
            "convert_hf_to_gguf.py on it."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty. Name a new folder.")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingExtra("Model cards need huggingface_hub, which is not installed. Run: pip install 'agentlightning[serve]'")
    weights, result, config = best_weights(run.path, policy), run.read_result(), run_config(run)
    if policy is not None:
        weights = Path(find_model(str(weights)).path)  # merged into its base
    rendering = run_rendering(run, weights)
    origin = model_origin(str(config.get("model", "")))
    with disk_errors("write the model to", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in _model_files(weights):
            shutil.copyfile(file, folder / file.name)
        save_rendering(folder, rendering)
        if rendering.chat_template is not None:  # of the run: other programs know only the template beside the tokenizer
            (folder / "chat_template.jinja").write_text(rendering.chat_template, encoding="utf-8")
        if origin.licence_file is not None:
            shutil.copyfile(origin.licence_file, folder / "LICENSE")
        if run.chart.is_file():
            shutil.copyfile(run.chart, folder / CHART)
        (folder / "README.md").write_text(model_card(run, origin, policy), encoding="utf-8")
    return Exported(folder, int(result.get("policy_step", 0)), str(result.get("policy_reason", "")), origin)


def _model_files(weights: Path) -> Iterator[Path]:
    """The files of a model, each once."""
    for file in sorted(weights.iterdir()):
        if file.is_file() and any(file.match(pattern) for pattern in PATTERNS):
            yield file
