"""Conversions to a folder that `from_pretrained` loads: a GGUF file is dequantised, and a LoRA adapter is merged into its base.

transformers reads configuration and weights of a GGUF file. The tokenizer is built here, because versions of transformers read it
differently, and a wrong split of the text changes every prompt silently. Files beside the GGUF file (config.json, tokenizer.json) go first.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, GGUFValueType, dequantize
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from agentlightning.errors import ConfigError
from agentlightning_torch.gguf_tokenizer import read_tokenizer
from agentlightning_torch.weights import no_bars

CONFIG_ADVICE = "Put the config.json of the original model beside the .gguf file."
QUANTISED = ("quantization_config", "_name_or_path", "_model_name_or_path")
"""Fields of a configuration that come from the quantised file."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer.model")


def convert_gguf(gguf: Path, folder: Path, *, weights: bool = True) -> None:
    """Convert a GGUF file to safetensors, configurations, tokenizer, and chat template. Raises `ConfigError` for a file that cannot be
    converted exactly."""
    try:
        reader = GGUFReader(gguf)
    except Exception as error:  # a damaged file fails in any way
        raise ConfigError(f"{gguf.name} is not a readable GGUF file: {error}. Download it again.") from error
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.") and not _long(field)}
    with _quiet():
        config = _config(gguf, reader, fields)
        dtype = _dtype(reader)
        if weights:
            config = _write_weights(gguf, folder, config, dtype)
        saved = _clean(config, dtype)
        saved.save_pretrained(folder)
        _tokenizer(gguf, fields, saved).save_pretrained(folder)
        _generation(gguf, fields, saved).save_pretrained(folder)
    _write_card(fields, folder)


def merge_adapter(adapter: Path, base: str, folder: Path, *, weights: bool = True) -> None:
    """Merge an adapter of peft into its base model (a folder or hub id). `weights=False` copies only the descriptions."""
    import peft  # slow to import, so only for adapters

    with _quiet():
        own = any((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
        tokenizer: Any = AutoTokenizer.from_pretrained(adapter if own else base)
        tokenizer.save_pretrained(folder)
        if not weights:
            AutoConfig.from_pretrained(base).save_pretrained(folder)
        else:
            model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
            dtype = model.dtype
            try:
                if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
                    model.resize_token_embeddings(len(tokenizer))  # the adapter was trained with new tokens
                merged: Any = peft.PeftModel.from_pretrained(model.float(), str(adapter)).merge_and_unload()
            except Exception as error:  # peft and torch refuse an adapter of another model in many ways
                raise ConfigError(
                    f"The LoRA adapter {str(adapter)!r} cannot be merged into {base!r}: {error}. Check base_model_name_or_path in its "
                    "adapter_config.json."
                ) from error
            merged.to(dtype).save_pretrained(folder)
        with contextlib.suppress(OSError):
            GenerationConfig.from_pretrained(base).save_pretrained(folder)
    rendering = Path(base) / "rendering.json"
    if rendering.is_file():
        shutil.copy(rendering, folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide progress bars. Reading a GGUF file shows one that no setting turns off."""
    with no_bars(), contextlib.redirect_stderr(io.StringIO()):
        yield


def _long(field: Any) -> bool:
    return bool(field.types) and field.types[0] == GGUFValueType.ARRAY and not field.name.startswith("tokenizer.")


def _config(gguf: Path, reader: GGUFReader, fields: dict[str, Any]) -> Any:
    """The configuration: that beside the file, or the file's own."""
    if (gguf.parent / "config.json").is_file():
        return AutoConfig.from_pretrained(gguf.parent)
    try:
        config: Any = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # transformers raises several kinds for an unknown architecture
        name = fields.get("general.architecture")
        raise ConfigError(
            f"transformers cannot read {gguf.name}, whose architecture is {name!r}: {error}. Use the original model's folder instead."
        ) from error
    _restore_rope(gguf, reader, fields, config)
    return config


def _restore_rope(gguf: Path, reader: GGUFReader, fields: dict[str, Any], config: Any) -> None:
    """Set the rope scaling of a file that stores factors or a scaling type, which transformers does not read."""
    parameters: dict[str, Any] = config.rope_parameters if getattr(config, "rope_parameters", None) else {}
    scaling = fields.get(f"{fields.get('general.architecture')}.rope.scaling.type")
    if scaling not in (None, "none") and parameters.get("rope_type", "default") == "default":
        raise ConfigError(f"{gguf.name} scales its positions by {scaling!r}, and transformers does not read this from it. {CONFIG_ADVICE}")
    tensor = next((tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight"), None)
    if tensor is None:
        return
    factors = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float64)
    llama3 = {
        "rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": float(parameters.get("rope_theta", 10000.0)),
    }  # fmt: skip
    if not np.allclose(_llama3_factors(llama3, len(factors)), factors, rtol=1e-3):
        raise ConfigError(f"{gguf.name} scales its positions by factors that are not those of Llama 3. {CONFIG_ADVICE}")
    config.rope_parameters = llama3


def _llama3_factors(rope: dict[str, Any], size: int) -> Any:
    """(size,) the divisors of the frequencies, as Llama 3.1 defines them."""
    length = 2 * np.pi * rope["rope_theta"] ** (np.arange(size) / size)
    original, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((original / length - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / rope["factor"] + smooth)


def _dtype(reader: GGUFReader) -> torch.dtype:
    """The number type that holds the file's largest tensor: that of a plain one, bfloat16 of a quantised one."""
    largest = max(reader.tensors, key=lambda tensor: int(tensor.n_elements))
    return {"F32": torch.float32, "F16": torch.float16}.get(largest.tensor_type.name, torch.bfloat16)


def _write_weights(gguf: Path, folder: Path, config: Any, dtype: torch.dtype) -> Any:
    """Write the dequantised weights, and return the configuration of the model."""
    options: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.float32, "config": config}
    with contextlib.suppress(ImportError):  # older versions always dequantise
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
    except Exception as error:
        raise ConfigError(f"The weights of {gguf.name} cannot be read: {error}. Use the original model's folder instead.") from error
    # A quantised model rejects `save_pretrained`, so its state is written here, each shared tensor once.
    state: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, value in sorted(model.state_dict().items(), key=lambda item: item[0].startswith("lm_head")):
        if value.data_ptr() not in places or not value.numel():
            places.add(value.data_ptr())
            state[name] = value.to(dtype).contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return model.config


def _clean(config: Any, dtype: torch.dtype) -> Any:
    settings = {key: value for key, value in config.to_dict().items() if key not in QUANTISED}
    kinds: Any = AutoModelForCausalLM._model_mapping
    settings["architectures"] = [kinds[type(config)].__name__]
    return type(config).from_dict({**settings, "dtype": str(dtype).removeprefix("torch.")})


def _tokenizer(gguf: Path, fields: dict[str, Any], config: Any) -> Any:
    if any((gguf.parent / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return AutoTokenizer.from_pretrained(gguf.parent)
    tokenizer = read_tokenizer(gguf, fields, config.max_position_embeddings)
    template = gguf.parent / "chat_template.jinja"
    if template.is_file():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def _write_card(fields: dict[str, Any], folder: Path) -> None:
    """Write what the file says of its licence and its origin, as the head of a model card."""
    address = str(fields.get("general.base_model.0.repo_url", "")).rstrip("/").rsplit("/", 2)[-2:]
    facts = {"license": fields.get("general.license"), "base_model": "/".join(address) if len(address) == 2 else None}
    lines = [f"{name}: {json.dumps(value)}" for name, value in facts.items() if value]
    if lines and not (folder / "README.md").exists():
        (folder / "README.md").write_text("\n".join(["---", *lines, "---", ""]), encoding="utf-8")


def _generation(gguf: Path, fields: dict[str, Any], config: Any) -> Any:
    """The ids that end a reply: the file's end of a text, of a turn, and of a message."""
    if (gguf.parent / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(gguf.parent)
    ids = [fields.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    ends: list[int] = list(dict.fromkeys(int(id) for id in ids if id is not None))
    own: Any = getattr(config, "eos_token_id", None)
    ends += [id for id in (own if isinstance(own, list) else [own]) if isinstance(id, int) and id not in ends]
    return GenerationConfig(
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"), eos_token_id=ends[0] if len(ends) == 1 else ends or None
    )
