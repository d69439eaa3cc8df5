"""The facts of a model that need no weights: architecture, parameters, and the memory that it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentlightning.errors import ConfigError
from agentlightning.files import safetensors_header
from agentlightning.registry.registry import registry

BYTES_FULL, BYTES_FROZEN = 18, 2
"""A parameter in training, at most: its weight in 16 bits, and in 32 bits the sum of its gradients, a master copy and two moments of
Adam's. verl adds up gradients in 16 bits, and float32 has no copy: 16. A frozen one, as below LoRA or in an engine, has 16 bits on a
GPU."""
BYTES_CPU = 4
"""A frozen parameter in float32."""
LORA_RANK = 16
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the configuration and the weights' headers tell."""

    architecture: str
    """The class, such as `Qwen2ForCausalLM`."""
    model_type: str
    layers: int | None
    hidden: int | None
    vocabulary: int | None
    context: int | None
    parameters: int | None
    """None: neither the weights' headers nor torch are here to count."""
    adapter: int | None
    """Parameters of a LoRA adapter of rank 16 on every linear layer."""
    dtype: str
    kv_token: int | None
    """Bytes of keys and values of one token, in 16 bits."""

    @property
    def size(self) -> str:
        """The number of parameters in words."""
        count = self.parameters
        if count is None:
            return "unknown size"
        name, unit = next((name, unit) for name, unit in (("B", 1e9), ("M", 1e6), ("K", 1e3), ("", 1)) if count >= unit)
        return f"{count / unit:.1f}{name} parameters"


def model_facts(path: str) -> ModelFacts:
    """Read the facts of a model (folder or hub id). Raises `ConfigError` for a configuration that transformers does not load."""
    from transformers import AutoConfig

    auto: Any = AutoConfig
    try:
        complete: Any = auto.from_pretrained(path)
    except Exception as error:  # an unknown type, code of its own, a damaged file
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"transformers cannot read the configuration of {path!r}: {reason}. Update transformers, or use another model."
        ) from error
    config: Any = complete.get_text_config()
    shapes, types = _headers(Path(path))
    shapes = shapes or _built(complete)
    heads: int | None = getattr(config, "num_attention_heads", None)
    hidden: int | None = getattr(config, "hidden_size", None)
    layers: int | None = getattr(config, "num_hidden_layers", None)
    dtype: Any = getattr(complete, "dtype", None) or getattr(config, "dtype", None)
    kv_token = None
    if heads and hidden and layers:
        head = getattr(config, "head_dim", None) or hidden // heads
        kv_token = 4 * layers * (getattr(config, "num_key_value_heads", None) or heads) * head
    return ModelFacts(
        architecture=(getattr(complete, "architectures", None) or [type(complete).__name__])[0],
        model_type=complete.model_type,
        layers=layers,
        hidden=hidden,
        vocabulary=getattr(config, "vocab_size", None),
        context=getattr(config, "max_position_embeddings", None),
        parameters=sum(math.prod(shape) for shape in shapes.values()) or None,
        adapter=_adapter(shapes) or None,
        dtype=types or str(dtype or "float32").removeprefix("torch."),
        kv_token=kv_token,
    )


def _headers(folder: Path) -> tuple[dict[str, tuple[int, ...]], str]:
    """(shapes by name, number types) from the headers of safetensors files; empty without any."""
    shapes: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, int] = {}
    files = sorted(folder.glob("model*.safetensors")) if folder.is_dir() else []
    for file in files:
        try:
            _, tensors = safetensors_header(file)
        except ValueError:  # cut off
            continue
        for name, tensor in tensors.items():
            shapes[name] = tuple(tensor["shape"])
            sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    largest = max(sizes, key=lambda name: sizes[name]) if sizes else ""
    return shapes, TYPES.get(largest, largest)


def _built(config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by name of a model without weights; empty without torch, or for a model that cannot be built."""
    entry = registry().entry("converters", "shapes")
    if entry.missing:
        return {}
    try:
        return entry.load()(config)
    except Exception:  # any model may refuse in its own way
        return {}


def _adapter(shapes: Mapping[str, tuple[int, ...]]) -> int:
    matrices = [shape for name, shape in shapes.items() if (len(shape) == 2 and ".layers." in f".{name}") or ".h." in f".{name}"]
    return sum(LORA_RANK * sum(shape) for shape in matrices if len(shape) == 2)
