"""Writes tiny GGUF files, as llama.cpp's converter does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(
    folder: Path, file: Path, *, rule: str = "default", quantised: bool = False, rope_factors: Any = None, **fields: Any
) -> Path:
    """Write the model and tokenizer of a folder (Llama or Qwen2) as a GGUF file. `fields` replaces fields of the tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer, config = AutoTokenizer.from_pretrained(folder), model.config
    writer = gguf.GGUFWriter(str(file), config.model_type)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = [tokenizer.convert_ids_to_tokens(id) for id in range(len(tokenizer))]
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model(fields.get("model", "gpt2"))
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if id in special else 1 for id in range(len(tokens))])
    pairs = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    if pairs:
        writer.add_token_merges([" ".join(pair) for pair in pairs])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if "eot" in fields:
        writer.add_eot_token_id(fields["eot"])
    if "licence" in fields:
        writer.add_license(fields["licence"])
        writer.add_base_model_count(1)
        writer.add_base_model_repo_url(0, fields["base"])
    writer.add_chat_template(tokenizer.chat_template)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(rope_factors, np.float32))
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        _add(writer, name, value, config, quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add(writer: Any, name: str, value: torch.Tensor, config: Any, quantised: bool) -> None:
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        own = f"blk.{layer}.{NAMES[part]}.{kind}"
        if config.model_type == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if part.endswith("q_proj") else config.num_key_value_heads
            value = value.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # llama.cpp pairs neighbouring rows
    else:
        own = f"{NAMES[stem]}.{kind}"
    data = value.contiguous().numpy()
    if quantised and data.ndim == 2:
        kind_of = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(own, gguf.quantize(data, kind_of), raw_dtype=kind_of)
    else:
        writer.add_tensor(own, data)
