"""Engines and trainers of several policies over one model, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM

from agentlightning.contracts.model import ModelFiles
from agentlightning.types import Sampling
from agentlightning_torch.engine import TorchEngine
from agentlightning_torch.settings import TorchEngineSettings, TorchTrainerSettings
from agentlightning_torch.trainer import TorchTrainer
from agentlightning_torch.weights import Weights

PROMPT = list(range(5, 55))
"""Long enough that rows of one policy read their keys together, and that a waiting reply would copy it."""


@asynccontextmanager
async def trainers(files: ModelFiles, share: dict[str, object], *names: str, **settings: Any) -> AsyncIterator[list[TorchTrainer]]:
    made = [
        await TorchTrainer.create(
            replace(files, policy=name),
            TorchTrainerSettings(**{"device": "cpu", "train": "lora", "lora_rank": 4, "lr": 1e-2, "seed": seed, **settings}),
            share,
        )
        for seed, name in enumerate(names)
    ]
    try:
        yield made
    finally:
        for trainer in made:
            await trainer.close()


@asynccontextmanager
async def serving(files: ModelFiles, share: dict[str, object], **settings: Any) -> AsyncIterator[TorchEngine]:
    engine = await TorchEngine.create(files, TorchEngineSettings(device="cpu", **settings), share)
    try:
        yield engine
    finally:
        await engine.close()


def random_adapter(files: ModelFiles, folder: Path, seed: int, **settings: Any) -> Path:
    """An adapter on the disk, as peft writes it, that changes the model a lot."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(files.path)
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    model = peft.get_peft_model(base, peft.LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(str(folder))
    return folder


async def ask(engine: Any, ids: list[int], **sampling: Any) -> tuple[list[int], np.ndarray]:
    tokens, logprobs = list[int](), list[float]()
    async for chunk in engine.generate(np.array(ids, np.int32), Sampling(**{"max_tokens": 12, "seed": 1, **sampling})):
        tokens += chunk.ids.tolist()
        logprobs += chunk.logprobs.tolist()
    return tokens, np.array(logprobs)


def expected(model: Any, ids: list[int], reply: list[int]) -> np.ndarray:
    """The log-probabilities of a reply in one plain pass."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids + reply])).logits[0].log_softmax(-1)
    return np.array([float(logits[len(ids) + place - 1, token]) for place, token in enumerate(reply)])


def parameters(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in weights.model.named_parameters()}
