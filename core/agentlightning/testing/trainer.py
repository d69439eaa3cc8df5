"""A trainer without a neural network: its policy is a table of logits, and numpy takes the gradient steps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.contracts.trainer import Capabilities, Trainer, TrainerSettings, check_capabilities, check_mismatch
from agentlightning.errors import NonFinite, TrainerError, UnsupportedSetting
from agentlightning.types import Policy


@dataclass(frozen=True, kw_only=True)
class TableSettings(TrainerSettings):
    """Settings of the table trainer."""

    lr: float = 1.0
    vocabulary: int = 300
    """Number of tokens."""


class TableTrainer(Trainer):
    """One row of logits for each token: the distribution of the token after it. The loss is the policy gradient, which is what
    `ppo_clip` is in one optimiser step."""

    Settings = TableSettings

    def __init__(self, settings: TableSettings | None = None, *, model: str = "table") -> None:
        self.settings = settings or TableSettings()
        self.capabilities = self.offers(self.settings)
        self.policy = Policy(version=0, base=model, uri="memory:table")
        self.logits: NDArray[np.float64] = np.zeros((self.settings.vocabulary, self.settings.vocabulary))
        """(vocabulary, vocabulary)"""
        self.closed = False

    @classmethod
    def offers(cls, settings: Any) -> Capabilities:
        return Capabilities(losses=frozenset({"ppo_clip"}), uris=frozenset({"memory"}))

    @classmethod
    async def create(cls, model: ModelFiles, settings: TableSettings, share: Share) -> TableTrainer:
        return cls(settings, model=model.name)

    async def step(self, batch: Batch, loss: LossSettings) -> tuple[Policy, dict[str, float]]:
        if self.closed:
            raise TrainerError("Trainer 'table' is closed. Take steps before close().")
        check_capabilities("table", self.capabilities, loss, critic=batch.returns is not None)
        if (loss.epochs, loss.minibatches) != (1, 1):
            raise UnsupportedSetting("Trainer 'table' takes one optimiser step. Set loss.epochs = 1 and loss.minibatches = 1.")
        self.old_logprobs = None
        if not batch.trained_tokens:
            return self.policy, {"tokens_trained": 0.0}
        index = np.flatnonzero(batch.trained)
        before, token = batch.token_ids[batch.parent[index]], batch.token_ids[index]
        probability, logprob = self._distribution(before, token, batch.temperature[index])
        logprobs = np.full(len(batch), np.nan)
        logprobs[index] = logprob
        check_mismatch(self, batch, logprobs)
        signal = batch.weight[index] * batch.advantage[index]  # (trained tokens,)
        change = -probability * (signal / batch.temperature[index])[:, None]
        change[np.arange(len(index)), token] += signal / batch.temperature[index]
        gradient = np.zeros_like(self.logits)
        np.add.at(gradient, before, change)
        value, norm = -float((signal * logprob).sum()), float(np.linalg.norm(gradient))
        if not np.isfinite([value, norm]).all():
            raise NonFinite(f"The loss is {value} and the gradient's norm {norm}. Lower trainer.lr.")
        self.logits, self.old_logprobs = self.logits + self.settings.lr * gradient, logprobs
        self.policy = structs.replace(self.policy, version=self.policy.version + 1)
        return self.policy, {"tokens_trained": float(len(index)), "loss": value, "grad_norm": norm}

    async def save(self, folder: Path) -> None:
        np.save(folder / "logits.npy", self.logits)
        (folder / "policy.json").write_text(json.dumps(structs.asdict(self.policy)), "utf-8")

    async def restore(self, folder: Path) -> None:
        try:
            policy, logits = Policy(**json.loads((folder / "policy.json").read_text("utf-8"))), np.load(folder / "logits.npy")
        except (OSError, ValueError, TypeError) as error:
            raise TrainerError(
                f"{str(folder)!r} has no checkpoint of trainer 'table': {error}. Pass a folder that `save` wrote."
            ) from error
        self.policy, self.logits = policy, logits

    async def close(self) -> None:
        self.closed = True

    def _distribution(
        self, before: NDArray[Any], token: NDArray[Any], temperature: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(tokens, vocabulary) probabilities of the next token, and (tokens,) log-probabilities of the sampled one."""
        scaled = self.logits[before] / temperature[:, None]
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        probability = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
        return probability, np.log(probability[np.arange(len(token)), token])
