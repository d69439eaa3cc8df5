"""A checkpoint: a folder for `AutoModelForCausalLM.from_pretrained` that also holds the trainer's state.

It is written under another name and renamed when complete, so a checkpoint is never partial. There is no pickle: tensors are safetensors,
the rest is JSON.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agentlightning.errors import TrainerError
from agentlightning.types import new_id
from agentlightning_torch.adapters import plain
from agentlightning_torch.optim import merged_state
from agentlightning_torch.weights import no_bars

TENSORS, FACTS = "trainer.safetensors", "trainer.json"
SCHEMA = 1
SPARE = 64 * 2**20
"""Minimum free disk space in bytes after writing a checkpoint."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """The state for a bitwise resume, except for frozen weights."""

    tensors: dict[str, torch.Tensor]
    """Trained weights in full precision, moments, and `rng` (torch's, on the CPU)."""
    facts: dict[str, Any]
    """JSON: the policy, the number of steps, and the settings that a resumed run must keep."""


def write(
    folder: Path, model: Any, tokenizer_path: str, state: State, adapter: str | None = None, own: dict[str, torch.Tensor] | None = None
) -> None:
    """Write or replace a checkpoint: the full model, or of several policies one `adapter`, or the model with its `own` state. Raises
    `TrainerError` if the disk refuses. The old checkpoint then stays."""
    part = folder.with_name(f".{folder.name}.{new_id()}")
    old = folder.with_name(f".{folder.name}.{new_id()}")
    try:
        state_dict = adapter_state(model, adapter) if adapter is not None else merged_state(model) if own is None else own
        weights = {name: value.contiguous() for name, value in state_dict.items()}
        part.mkdir(parents=True)
        need = sum(t.numel() * t.element_size() for t in (*weights.values(), *state.tensors.values())) + SPARE
        free = shutil.disk_usage(part).free
        if free < need:
            raise TrainerError(
                f"Checkpoint {str(folder)!r} needs {need / 1e9:.1f} GB, but the disk has {free / 1e9:.1f} GB free. Make room."
            )
        with no_bars():
            plain(model).save_pretrained(part, state_dict=weights) if adapter is None else write_adapter(part, model, adapter)
        _save_tokenizer(tokenizer_path, part)
        save_file({name: value.contiguous() for name, value in state.tensors.items()}, part / TENSORS)
        (part / FACTS).write_text(json.dumps({"schema": SCHEMA, **state.facts}, indent=2), "utf-8")
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    except (OSError, SafetensorError) as error:
        raise TrainerError(
            f"Checkpoint {str(folder)!r} could not be written: {error}. Check the disk's space and the folder's permissions."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def adapter_state(model: Any, adapter: str) -> dict[str, torch.Tensor]:
    """Return the weights of one of several adapters, under the names of peft's files."""
    import peft  # slow to import, so only for adapters

    return peft.get_peft_model_state_dict(model, adapter_name=adapter)


def write_adapter(folder: Path, model: Any, adapter: str) -> None:
    """Write one of several adapters into a folder that `peft` loads."""
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in adapter_state(model, adapter).items()}
    save_file(state, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    settings, trains = model.peft_config[adapter], model.peft_config[adapter].inference_mode
    settings.inference_mode = True
    try:
        settings.save_pretrained(str(folder))
    finally:
        settings.inference_mode = trains


def export(folder: Path, model: Any, *, adapter: bool, name: str | None = None, own: dict[str, torch.Tensor] | None = None) -> None:
    """Write the weights for an engine: the LoRA adapter (of several: `name`) or the full model, with the `own` state of one of several
    policies. Raises `TrainerError` if the disk refuses."""
    try:
        with no_bars():
            if name is not None:
                write_adapter(folder, model, name)
            elif own is not None:
                plain(model).save_pretrained(folder, state_dict=own)
            else:
                model.save_pretrained(folder) if adapter else plain(model).save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise TrainerError(
            f"The weights for the engine could not be written to {str(folder)!r}: {error}. Check the disk's space."
        ) from error


def read(folder: Path) -> State:
    """Read the trainer's state. Raises `TrainerError` if the folder has none, or one of another version."""
    try:
        facts = json.loads((folder / FACTS).read_text("utf-8"))
        if facts.pop("schema") != SCHEMA:
            raise TrainerError(
                f"Checkpoint {str(folder)!r} was written by another version of agentlightning. Install that version to resume."
            )
        return State(load_file(folder / TENSORS), facts)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise TrainerError(
            f"{str(folder)!r} is not a checkpoint that can resume: {type(error).__name__}: {error}. Choose another."
        ) from error


def _save_tokenizer(path: str, folder: Path) -> None:
    """Copy the tokenizer to the checkpoint, if the model's folder has one."""
    times = tuple(file.stat().st_mtime_ns for name in ("tokenizer.json", "tokenizer_config.json") if (file := Path(path) / name).is_file())
    if times or not Path(path).is_dir():
        _tokenizer(path, times).save_pretrained(folder)


@lru_cache(maxsize=1)
def _tokenizer(path: str, times: tuple[int, ...]) -> Any:
    """Return a tokenizer whose files have these times. Reading takes far longer than writing, and every checkpoint has one."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)
