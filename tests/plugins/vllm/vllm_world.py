"""What the tests of the vLLM engine share: a trainer, and an engine that serves its weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from msgspec.structs import replace
from peft import PeftModel
from transformers import AutoModelForCausalLM

from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.training.weight_sync import folder_of
from agentlightning.types import Policy, Sampling, ints
from agentlightning_torch.adapters import named_parameters
from agentlightning_torch.trainer import Settings as TrainerSettings
from agentlightning_torch.trainer import TorchTrainer
from agentlightning_vllm.engine import VllmEngine
from agentlightning_vllm.settings import VllmSettings

VOCABULARY = 259


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCABULARY, length).tolist()


async def ask(engine: Any, ids: list[int], *, rollout: str | None = None, on_chunk: Any = None, **settings: Any) -> Any:
    """(response ids, logprobs, versions, finish)"""
    settings.setdefault("max_tokens", 12)
    out, logprobs, versions, finish = [], [], set(), None
    async for chunk in engine.generate(ints(ids), Sampling(**settings), rollout=rollout):
        assert finish is None
        out += chunk.ids.tolist()
        logprobs += chunk.logprobs.tolist()
        versions.add(chunk.version)
        finish = chunk.finish
        if on_chunk is not None:
            on_chunk()
    return out, np.array(logprobs), versions, finish


def expected(model: Any, ids: list[int], response: list[int], temperature: float = 1.0) -> np.ndarray:
    """Log-probabilities of a response from a plain forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([ids + response])).logits[0][len(ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0].numpy()


class World:
    """A trainer and an engine that serves what it makes."""

    def __init__(self, trainer: TorchTrainer, engine: VllmEngine, folder: Path) -> None:
        self.trainer, self.engine, self.folder = trainer, engine, folder

    @property
    def model(self) -> Any:
        return self.trainer.weights.model

    def change(self, amount: float = 0.02) -> None:
        """What a step does: other weights, the next version."""
        weights = self.trainer.weights
        with weights.lock, torch.no_grad():
            version = weights.policy.version + 1
            for parameter in weights.model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(version))
                    parameter.add_(amount * noise)
            weights.policy = replace(weights.policy, version=version)

    async def export(self) -> Policy:
        return await self.trainer.export(self.folder / f"version-{self.trainer.policy.version}")

    async def serve(self) -> dict[str, float]:
        return await self.engine.load(await self.export())


class PolicyWorld:
    """Trainers of several policies over one model, and an engine that serves what they make."""

    def __init__(self, trainers: dict[str, TorchTrainer], engine: VllmEngine, files: ModelFiles, folder: Path) -> None:
        self.trainers, self.engine, self.files, self.folder = trainers, engine, files, folder

    @classmethod
    async def open(cls, files: ModelFiles, folder: Path, ranks: dict[str, int], settings: VllmSettings) -> PolicyWorld:
        """`ranks`: of the adapter of each policy."""
        torch.set_num_threads(1)
        share: Share = {}
        trainers: dict[str, TorchTrainer] = {}
        for seed, (name, rank) in enumerate(ranks.items()):
            own = TrainerSettings(train="lora", lora_rank=rank, dtype="float32", device="cpu", seed=seed)
            trainers[name] = await TorchTrainer.create(dataclasses.replace(files, policy=name), own, share)
        return cls(trainers, await VllmEngine.create(files, settings, share), files, folder)

    async def close(self) -> None:
        await self.engine.close()
        for trainer in self.trainers.values():
            await trainer.close()

    def change(self, name: str, amount: float = 0.05) -> None:
        """What a step does: other weights of one adapter, its next version."""
        trainer = self.trainers[name]
        version = trainer.policy.version + 1
        with trainer.weights.lock, torch.no_grad():
            for place, parameter in enumerate(named_parameters(trainer.weights.model, name).values()):
                random = torch.Generator().manual_seed(crc32(f"{name} {version} {place}".encode()))
                parameter.add_(amount * torch.randn(parameter.shape, generator=random))
            trainer.weights.policy = replace(trainer.policy, version=version)

    async def export(self, name: str) -> Policy:
        return await self.trainers[name].export(self.folder / f"{name}-{self.trainers[name].policy.version}")

    async def serve(self, *names: str) -> list[dict[str, float]]:
        return [await self.engine.load(await self.export(name)) for name in names]

    async def serve_changed(self, *names: str) -> None:
        """Serve policies whose adapters change the model a lot."""
        for name in names:
            self.change(name, 0.2)
        await self.serve(*names)

    def model_of(self, name: str) -> Any:
        """The model of a served policy, as transformers and peft load it."""
        base = AutoModelForCausalLM.from_pretrained(self.files.path).eval()
        policy = self.engine.policies[name].policy
        return base if policy.kind == "full" else PeftModel.from_pretrained(base, str(folder_of(policy))).eval()
