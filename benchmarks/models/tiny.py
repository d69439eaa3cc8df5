"""Build a tiny model with random weights for every causal language model that transformers has.

The sizes of a configuration shrink by the names of its fields, so a new architecture usually needs no entry here. Windows, chunks and
original lengths shrink too, which puts each length at which a model changes within the reach of a short sequence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

CONTEXT = 64
"""Positions of a tiny model."""
BOUNDARY = 24
"""Windows, chunks, and original lengths: a model changes beyond this many tokens."""
VOCABULARY = 72

RULES: tuple[tuple[str, Any], ...] = (
    (r"(unpadded_|pronunciation_|shape_)?vocab_size|vocab_size_per_layer_input|.*byte_group_vocab", VOCABULARY),
    (r"ngram_vocab_size_base", 64),
    (r"split_ngram_parts|make_ngram_vocab.*", 1),
    (r"(max_(position_embeddings|seq_len|target_positions|source_positions)|n_positions|n_ctx|context_length|model_max_length)", CONTEXT),
    (r"original_max_position_embeddings|initial_context_length", BOUNDARY),
    (r".*window(_size|_len)?|attention_chunk_size|local_attention|rel_extent|log_scaling_n_floor|floor_scale", BOUNDARY),
    (r"index_topk", 16),
    (r"index_block_size|index_topk_blocks", 4),
    (r".*(?<!qk_)(lora_rank|_rank)", 8),
    (r"qk_head_dim", 16),
    (r"(.*_)?head_dim|kv_channels|dim_head|d_head|attention_head_size|mamba_headdim|mamba_d_head|rotary_dim", 8),
    (r"hidden_size|d_model|n_embd|emb_dim|embedding_dim|lru_width|(input_|output_)?embedding_size|dim_model_base", 32),
    (r"word_embed_proj_dim|attention_hidden_size", 32),
    (r".*intermediate_size.*|.*ffn_dim|.*ffn_hidden_size|dff|dim_ff|feed_forward_size|d_inner|router_hidden_size", 32),
    (r"(n_|num_)(hidden_)?layers?|.*(encoder|decoder)_layers|num_blocks", 2),
    (r".*num_key_value_heads|num_kv_heads|num_query_groups|mamba_n_?groups|n_groups|linear_num_key_heads", 2),
    (r"(.*_)?(attention|mamba)_(n_)?heads|n_heads?|linear_num_(value_)?heads|num_heads|index_n_heads|mamba_num_heads", 4),
    (r"(num_|n_|moe_num_)?(local_|routed_)?experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k", 2),
    (r"n_group|num_expert_group|topk_group|zero_expert_num", 1),
    (r"(mamba_)?chunk_size", 8),
    (r".*state_size|mamba_d_state", 8),
    (r".*dropout.*|.*pdrop|.*layerdrop|.*jitter_noise", 0.0),
)
BY_LAYER = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types", "indexer_types")
"""Fields with the kind of each layer."""
DROPPED = ("model_type", "transformers_version", "rope_scaling", "dtype", "architectures", "max_window_layers")

SAME_HEADS = {"num_key_value_heads": 4}
"""For attention that compresses keys and values."""
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
QWEN4 = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16, "indexer_compress_ratio": 2}
DORY = ["full_attention", "mlp", "sliding_attention", "mlp", "full_attention", "mlp"]
DECODER = {"is_decoder": True}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": BOUNDARY,
    "factor": CONTEXT / BOUNDARY,
}
ENTRIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), SAME_HEADS),
    **dict.fromkeys(("glm_moe_dsa", "kimi_linear", "longcat_flash", "minicpm3", "sarvam_mla", "youtu"), SAME_HEADS),
    **dict.fromkeys(("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"), DECODER),
    **dict.fromkeys(("reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta"), DECODER),
    **dict.fromkeys(("xlm-roberta-xl", "xmod"), DECODER),
    **dict.fromkeys(("bamba", "granitemoehybrid"), MAMBA),
    **{name: {"head_dim": 8} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32},
    },
    "deepseek_v2": {**SAME_HEADS, "num_experts_per_tok": 2},
    "dory": {"n_input_layers": 2, "n_recurrent_layers": 2, "n_output_layers": 2, "num_hidden_layers": 6, "layer_types": DORY},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "gemma3n": {"text_config": {"activation_sparsity_pattern": [0.0, 0.0], "num_kv_shared_layers": 0}},
    "gemma3n_text": {"activation_sparsity_pattern": [0.0, 0.0], "num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "qwen4_exp": {"text_config": QWEN4},
    "qwen4_exp_text": QWEN4,
    "reformer": {**DECODER, "axial_pos_embds": False},
    "zamba2": {
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "hybrid_layer_ids": [1, 2],
    },
}
"""Fields by model type, where the rules are not enough."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert (encoder)": ("bert", {"is_decoder": False}),
    "gemma3_text (window 5)": ("gemma3_text", {"sliding_window": 5}),
    "llama (rope dynamic)": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}, "max_position_embeddings": 24},
    ),
    "llama (rope linear)": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
    "llama (rope llama3)": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": BOUNDARY,
            }
        },
    ),
    "llama (rope longrope)": ("llama", {"rope_parameters": LONG_ROPE}),
    "llama (rope yarn)": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": BOUNDARY}},
    ),
    "phi3 (rope longrope)": ("phi3", {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": BOUNDARY}),
    "phimoe (rope longrope)": ("phimoe", {"rope_parameters": {**LONG_ROPE, "short_mscale": 1.1, "long_mscale": 1.3}, "sliding_window": 40}),
    "qwen2 (windows)": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"]}),
    "qwen3 (windows)": ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"]}),
}
"""Model types with other settings, by name."""


def causal_types() -> list[str]:
    """The model types of transformers that have a class for causal language modelling."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(name: str) -> Any:
    """A small configuration of a model type, or of a variant."""
    model_type, fields = VARIANTS.get(name, (name, {}))
    config = CONFIG_MAPPING[model_type]
    return config(**_shrunk(config, {**ENTRIES.get(model_type, {}), **fields}))


def _shrunk(config: Any, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration class with small sizes, except for those of the entry."""
    default = config()
    fields = {name: value for name, value in default.to_dict().items() if name not in DROPPED}
    before = next((fields[name] for name in ("num_hidden_layers", "n_layer", "num_layers") if name in fields), 0)
    count = max([2, *(len(set(fields[name])) for name in BY_LAYER if isinstance(fields.get(name), list))])
    small: dict[str, Any] = {}
    for name, value in fields.items():
        inner = getattr(default, "sub_configs", {}).get(name)
        if name in entry and not isinstance(entry[name], dict):
            small[name] = entry[name]
        elif inner is not None and isinstance(value, dict) and value.get("model_type") in CONFIG_MAPPING:
            small[name] = {**_shrunk(CONFIG_MAPPING[value["model_type"]], entry.get(name, {})), "model_type": value["model_type"]}
        elif name in ("num_hidden_layers", "n_layer", "num_layers"):
            small[name] = count
        elif name == "per_layer_config" and value:
            small[name] = {"1": {key: 2 * _small(key, size) for key, size in next(iter(value.values())).items()}}
        else:
            small[name] = _value(name, value, before, count)
    return {
        **small,
        **{name: value for name, value in entry.items() if name not in small or not isinstance(small[name], dict)},
        **_rope(entry),
    }


def _rope(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name in ("rope_parameters", "attn_config", "ffn_config")}


def _value(name: str, value: Any, before: int, count: int) -> Any:
    """A field with small sizes; a list with an entry for each layer becomes shorter."""
    if isinstance(value, dict) and name == "rope_parameters":
        return {key: _value(name, inner, 0, 0) if isinstance(inner, dict) else _small(key, inner) for key, inner in value.items()}
    if isinstance(value, list) and name in BY_LAYER:
        distinct = list(dict.fromkeys(value))
        return (distinct * count)[:count]
    if isinstance(value, list) and len(value) == before > count:
        return [_small(name.removesuffix("_per_layer"), item) for item in value[:count]]
    return _small(name, value)


def _small(name: str, value: Any) -> Any:
    if isinstance(value, bool) or value is None or not isinstance(value, int | float):
        return value
    if name.endswith("token_id"):
        return 0
    for pattern, size in RULES:
        if re.fullmatch(pattern, name):
            return min(value, size) if value > 0 else value
    return value


def tiny_model(name: str, seed: int = 0) -> Any:
    """A model with wide random weights, in float32 and eval mode. Raises any exception if it cannot be built, or run on token ids."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(name), dtype=torch.float32).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if re.search(r"A_log|dt_|lambda|time_", key):
                    continue
                if parameter.ndim >= 2:
                    parameter.normal_(0, 0.15)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    if getattr(model, "set_default_language", None):
        model.set_default_language("en_XX")
    with torch.no_grad():
        logits = model(input_ids=torch.arange(1, 20)[None], use_cache=False).logits
    if not torch.isfinite(logits).all():
        raise ValueError("its logits are not finite")
    return model
