"""The models of the measurements. As a script, builds a model folder from the copied pieces: `models.py smollm2`."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from agentlightning.config.models import find_model
from agentlightning.contracts.model import ModelFiles
from measuring import DRY, OUT, Figures


def model_files(name: str) -> ModelFiles:
    """Return the model of a step, or a tiny one at toy size."""
    return tiny_files() if DRY else real_files(name)


def real_files(name: str) -> ModelFiles:
    """Return `smollm2` or `qwen05`, converted from its parcel if needed."""
    if name == "smollm2":
        return find_model("smollm2-135m")
    folder = OUT / "models" / name
    if not folder.is_dir():
        part = folder.with_name(f".{name}")
        shutil.rmtree(part, ignore_errors=True)
        convert_qwen05(OUT / "parcels" / name, part)
        part.rename(folder)
    return find_model(str(folder))


def tiny_files() -> ModelFiles:
    """Return a model with 0.1 million random weights."""
    folder = OUT / "models" / "tiny"
    if not (folder / "config.json").exists():
        from agentlightning_torch.testing import tiny_model

        folder.mkdir(parents=True, exist_ok=True)
        tiny_model(folder, context=4096)
    return ModelFiles("tiny", str(folder))


def convert_qwen05(parcel: Path, folder: Path) -> None:
    """Load Qwen2.5-Coder-0.5B-Instruct in bfloat16 from its 4-bit GGUF file, with the end tokens of its published generation config."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    settings = {"gguf_file": "model.gguf", "dtype": torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(parcel, quantization_config=GgufConfig(dequantize=True), **settings)
    tokenizer = AutoTokenizer.from_pretrained(parcel, gguf_file="model.gguf")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(name: str) -> None:
    began = time.monotonic()
    files = real_files(name) if (OUT / "parcels" / name).is_dir() else model_files(name)
    size = sum(file.stat().st_size for file in Path(files.path).rglob("*") if file.is_file())
    Figures().add(model=name, bytes=size, seconds=round(time.monotonic() - began, 1))


if __name__ == "__main__":
    main(sys.argv[1])
