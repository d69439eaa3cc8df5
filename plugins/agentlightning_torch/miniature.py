"""A model's architecture with small sizes and random weights, to try out the engine and the trainer without the real weights."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from agentlightning.contracts.model import Fit, ModelFiles
from agentlightning.errors import ConfigError, LightningError
from agentlightning_torch.weights import no_bars
from agentlightning_torch.workers import ending_workers

HEAD, CONTEXT, BOUNDARY = 16, 64, 24
"""The size of a head, the context, and the lengths at which a model changes (windows, original lengths)."""
SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size.*", 128),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len", CONTEXT),
    (r"original_max_position_embeddings|.*window(_size|_len)?|attention_chunk_size", BOUNDARY),
    (r".*(q|kv)_lora_rank", 16),
    (r"(.*_)?head_dim|kv_channels", HEAD),
    (r"hidden_size|d_model|n_embd|.*embedding_size", 4 * HEAD),
    (r".*intermediate_size|.*ffn_dim|ffn_hidden_size|n_inner", 64),
    (r"num_key_value_heads|num_kv_heads", 2),
    (r"num_attention_heads|n_head|num_heads", 4),
    (r"(num_|n_|moe_num_|num_local_|n_routed_)experts", 4),
    (r"num_experts_per_tok|moe_topk", 2),
    (r"n_group|topk_group", 1),
)
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
KINDS = ("layer_types", "mlp_layer_types", "layers_block_type")


def shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters by name, without their memory."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def small_config(config: Any) -> Any:
    """The configuration with small sizes; everything else stays as it is."""
    fields: dict[str, Any] = config.to_dict()
    layers = next((int(fields[name]) for name in LAYERS if isinstance(fields.get(name), int)), 0)
    count = max([2, *(len(set(fields[name])) for name in KINDS if isinstance(fields.get(name), list))])
    grouped = bool(fields.get("num_key_value_heads")) and fields["num_key_value_heads"] != fields.get("num_attention_heads")
    small = {name: _small(name, value, layers, count) for name, value in fields.items()}
    for name in LAYERS:
        if name in small:
            small[name] = count
    for name in KINDS:
        if isinstance(fields.get(name), list):
            kinds = list(dict.fromkeys(fields[name]))
            small[name] = (kinds * count)[:count]
    if small.get("num_key_value_heads") and not grouped:
        small["num_key_value_heads"] = 4
    inner = getattr(config, "text_config", None)
    if inner is not None:
        small["text_config"] = small_config(inner).to_dict()
    return type(config).from_dict(small)


def _small(name: str, value: Any, layers: int, count: int) -> Any:
    if isinstance(value, dict):
        return {key: _small(str(key), item, layers, count) for key, item in value.items()}
    if isinstance(value, list) and name in ("short_factor", "long_factor"):
        return value[: HEAD // 2]
    if isinstance(value, list) and len(value) == layers > count:
        return value[:count]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if name.endswith("token_id"):
        return 0
    size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)
    return value if size is None or value <= 0 else min(value, size)


@ending_workers()
def try_model(model: ModelFiles, attempt: Callable[[ModelFiles], str]) -> Fit:
    """Try out a miniature: `attempt` returns how it is taken, or raises `LightningError`."""
    try:
        with _silent():
            config: Any = AutoConfig.from_pretrained(model.path)
            miniature: Any = AutoModelForCausalLM.from_config(small_config(config), dtype=torch.float32).eval()
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                for parameter in miniature.parameters():
                    if parameter.ndim >= 2:
                        parameter.normal_(0, 0.15)
                miniature(input_ids=torch.arange(1, 9)[None], use_cache=False)
    except Exception as error:  # transformers, and each model, refuse in their own ways
        if "Unrecognized configuration class" in str(error):
            return Fit("no", "transformers has no causal language model of this type. Use another model")
        return Fit("unknown", f"a small copy of it cannot be built ({str(error).strip().splitlines()[0][:120]}). Try agl train --dry-run")
    with TemporaryDirectory(prefix="agl-miniature-") as temporary, _silent():
        folder = Path(temporary)
        miniature.save_pretrained(folder)
        try:
            return Fit("yes", attempt(ModelFiles(model.name, str(folder))))
        except ConfigError as error:
            return Fit("no", _reason(error, model, folder))
        except LightningError as error:
            return Fit("unknown", str(error))


def _reason(error: ConfigError, model: ModelFiles, folder: Path) -> str:
    """The error about the miniature as one about the model, with a way out."""
    text = str(error).replace(str(folder), model.path)
    if "Use another model" in text:
        return text
    return f"{text.partition('. ')[0].splitlines()[0]}. Use another model, or engine 'vllm' with trainer 'verl'."


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hide progress bars and warnings about the random weights."""
    loggers = [logging.getLogger(name) for name in ("agentlightning_torch.trainer", "agentlightning_torch.engine", "transformers")]
    loggers.append(logging.getLogger("transformers.integrations.hub_kernels"))
    before = [log.disabled for log in loggers]
    for log in loggers:
        log.disabled = True
    try:
        with no_bars():
            yield
    finally:
        for log, disabled in zip(loggers, before, strict=True):
            log.disabled = disabled
