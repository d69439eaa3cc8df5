"""A tiny model for tests, with random weights and the tokenizer of `agentlightning.testing.tokenizer`."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agentlightning.contracts.model import ModelFiles
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning_torch.weights import no_bars


def tiny_model(
    folder: str | PathLike[str],
    *,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    context: int = 512,
    tied: bool = False,
) -> ModelFiles:
    """Save a Llama with random float32 weights in `folder`.

    The same arguments give the same weights, and torch's global seed stays unchanged. Weights have a large deviation (0.1), so attention
    and next-token distributions are far from uniform. With `tied`, the embedding is also the output head.
    """
    tokenizer: Any = make_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with no_bars():
        model.save_pretrained(str(folder))
    return ModelFiles("tiny", str(folder))
