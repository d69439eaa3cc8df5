"""The torch trainer: takes gradient steps on weights that it shares with the engine of this process.

Its work runs in a thread of its own, one job at a time, and holds the weights' lock while it reads or changes them. The loss of a step is
the sum of weight * term over the trained tokens, whatever packs it is computed in. A step that fails leaves weights and moments as they
were.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray

from agentlightning.errors import ConfigError, NonFinite, TrainerError
from agentlightning.model import Policy
from agentlightning.models import ModelFiles, Share
from agentlightning.registry import registry
from agentlightning.rl.batch import Batch
from agentlightning.rl.loss import LossSettings
from agentlightning.rl.packs import Pack
from agentlightning.rl.schedule import learning_rate
from agentlightning.trainer import Capabilities
from agentlightning_torch import checkpoint
from agentlightning_torch.forward import Scores, forest_agrees, group_rows, probe_of, score_forest, score_rows
from agentlightning_torch.heap import give_back
from agentlightning_torch.losses import LOSSES, term_of
from agentlightning_torch.optim import Optimizer, add_lora, trained_parameters
from agentlightning_torch.weights import Weights, get_weights

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the torch trainer."""

    train: str = "full"
    """`full`; `top:N`, the last N layers and the final norm; or `lora`."""
    lora_rank: int = 16
    lora_alpha: float = 32.0
    lr: float = 1e-5
    weight_decay: float = 0.0
    """On matrices; norms and biases never decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    """The gradient is scaled down to this norm."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Of lr after the warm-up; linear and cosine reach 0 at `total_steps`."""
    warmup_steps: int = 0
    total_steps: int | None = None
    """Absent: the steps of the run."""
    max_tokens: int = 4096
    """Tokens computed at once: what bounds the memory. A conversation must fit."""
    device: str = "auto"
    dtype: str = "auto"
    """Of the weights; `auto` is bfloat16 on a GPU (steps are taken on a float32 copy) and float32 on a CPU."""
    seed: int = 0
    """Of a fresh LoRA adapter."""

    def __post_init__(self) -> None:
        if isinstance(self.betas, list):  # as TOML gives it
            object.__setattr__(self, "betas", tuple(self.betas))
        kind, _, count = self.train.partition(":")
        if self.train not in ("full", "lora") and not (kind == "top" and count.isdecimal() and int(count) > 0):
            raise ConfigError(f"trainer.train is {self.train!r}; expected 'full', 'lora' or 'top:N' (such as 'top:8')")
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ConfigError(f"trainer.schedule is {self.schedule!r}; expected 'constant', 'linear' or 'cosine'")
        if self.schedule != "constant" and self.total_steps is not None and self.total_steps <= self.warmup_steps:
            raise ConfigError(
                f"trainer.schedule {self.schedule!r} needs total_steps above warmup_steps ({self.warmup_steps}); it is {self.total_steps}"
            )
        rules: dict[str, tuple[Any, bool, str]] = {
            "lora_rank": (self.lora_rank, self.lora_rank >= 1, "at least 1"),
            "lora_alpha": (self.lora_alpha, self.lora_alpha > 0, "above 0"),
            "lr": (self.lr, 0 < self.lr < 1, "above 0 and below 1 (1e-5 is usual, 1e-4 for LoRA)"),
            "weight_decay": (self.weight_decay, self.weight_decay >= 0, "0 or more"),
            "betas": (self.betas, len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers from 0 to below 1"),
            "clip_norm": (self.clip_norm, self.clip_norm > 0, "above 0"),
            "warmup_steps": (self.warmup_steps, self.warmup_steps >= 0, "0 or more"),
            "max_tokens": (self.max_tokens, self.max_tokens >= 1, "at least 1"),
        }
        for name, (value, holds, expected) in rules.items():
            if not holds:
                raise ConfigError(f"trainer.{name} is {value}; expected {expected}")


class TorchTrainer:
    """See `agentlightning.trainer.Trainer`."""

    Settings = Settings

    def __init__(self, weights: Weights, settings: Settings, optimizer: Optimizer, capabilities: Capabilities) -> None:
        self.weights = weights
        self.settings = settings
        self.optimizer = optimizer
        self.capabilities = capabilities
        self.steps = 0
        """Steps that changed the weights; the schedule counts them."""
        self._thread = ThreadPoolExecutor(1, "torch-trainer")

    @classmethod
    async def create(cls, model: ModelFiles, settings: Settings, share: Share) -> TorchTrainer:
        """Load the model, or meet the engine's, and mark what is trained. Raises `ConfigError`."""
        if settings.schedule != "constant" and settings.total_steps is None:
            raise ConfigError(f"trainer.schedule {settings.schedule!r} needs total_steps, which only a run can fill in by itself")
        return await asyncio.to_thread(cls._create, model, settings, share)

    @classmethod
    def _create(cls, model: ModelFiles, settings: Settings, share: Share) -> TorchTrainer:
        weights = get_weights(share, model, device=settings.device, dtype=settings.dtype)
        with weights.lock:
            why = forest_agrees(weights.model, weights.device, weights.dtype)
            if why is not None:
                log.warning("model %r is not plain attention (%s); training uses root-to-leaf rows instead of the forest", model.name, why)
            if settings.train == "lora":
                weights.model = add_lora(weights.model, settings.lora_rank, settings.lora_alpha, settings.seed)
                weights.policy = replace(weights.policy, kind="lora")
            optimizer = Optimizer(
                trained_parameters(weights.model, settings.train),
                lr=settings.lr,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
                clip_norm=settings.clip_norm,
            )
        return cls(
            weights,
            settings,
            optimizer,
            Capabilities(
                losses=frozenset({*LOSSES, *_own_losses()}),
                uris=frozenset({"memory", "file"}),
                forest=why is None,
                own_losses=True,
                lora=True,
            ),
        )

    @property
    def policy(self) -> Policy:
        return self.weights.policy

    async def step(self, batch: Batch, loss: LossSettings) -> tuple[Policy, dict[str, float]]:
        return await self._run(lambda: self._step(batch, loss))

    async def save(self, folder: Path) -> None:
        await self._run(lambda: self._save(Path(folder)))

    async def export(self, folder: Path) -> Policy:
        return await self._run(lambda: self._export(Path(folder)))

    async def restore(self, folder: Path) -> None:
        await self._run(lambda: self._restore(Path(folder)))

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self, work: Callable[[], T]) -> T:
        """Do it in the trainer's thread, with the weights to itself. A caller that is cancelled waits for the end all the same: a step
        that is half done belongs to nobody."""

        def locked() -> T:
            with self.weights.lock:
                try:
                    return work()
                except torch.OutOfMemoryError as error:
                    self.optimizer.zero()
                    raise TrainerError(f"out of memory: {error}; lower trainer.max_tokens ({self.settings.max_tokens})") from error
                except RuntimeError as error:
                    self.optimizer.zero()
                    raise TrainerError(f"torch could not do it: {error}") from error

        future = asyncio.get_running_loop().run_in_executor(self._thread, locked)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    def _step(self, batch: Batch, loss: LossSettings) -> tuple[Policy, dict[str, float]]:
        term = term_of(loss)
        if not batch.trained_tokens:
            return self.policy, {"tokens": 0.0, "tokens_trained": 0.0, "lr": 0.0}
        started = time.perf_counter()
        parts = [p for p in (list(range(len(batch.rollout_ids)))[k :: loss.minibatches] for k in range(loss.minibatches)) if p]
        several = loss.epochs * len(parts) > 1
        measured = Measured(batch, loss)
        if several:
            with torch.no_grad():
                for scores, _ in self._scores(batch, None, measured):
                    measured.old[scores.index] = _numpy(scores.logprob)
            before = self.optimizer.state()
        lr = learning_rate(self.settings.lr, self.settings.schedule, self.settings.warmup_steps, self.settings.total_steps, self.steps)
        try:
            for _ in range(loss.epochs):
                for part in parts:
                    # every minibatch is an estimate of the full loss, and so is scaled to it
                    self._gradient(batch, part if len(parts) > 1 else None, term, float(len(parts)), measured, keep_old=several)
                    measured.norms.append(self.optimizer.step(lr))
        except BaseException:
            self.optimizer.zero()
            if several:
                self.optimizer.load(before)
            raise
        self.steps += 1
        metrics = {**measured.metrics(self.policy.version), "lr": lr, "seconds": time.perf_counter() - started}
        metrics["tokens_per_second"] = metrics["tokens"] / metrics["seconds"]
        self.weights.policy = replace(self.policy, version=self.policy.version + 1)
        give_back()
        return self.policy, metrics

    def _gradient(
        self,
        batch: Batch,
        rollouts: list[int] | None,
        term: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        scale: float,
        measured: Measured,
        *,
        keep_old: bool,
    ) -> None:
        """Add the gradient of the loss over some rollouts (None: all) to the parameters."""
        for scores, tokens in self._scores(batch, rollouts, measured):
            now = scores.logprob
            if not keep_old:
                measured.old[scores.index] = _numpy(now)
            old = torch.from_numpy(measured.old[scores.index]).to(now) if keep_old else now.detach()
            advantage, weight = (torch.from_numpy(a[scores.index]).to(now) for a in (batch.advantage, batch.weight))
            value = (weight * term(now, old, advantage)).sum() * scale
            if not torch.isfinite(value):
                where = batch.completion_ids[int(batch.transition[scores.index[0]])]
                shown = float(value.detach())
                raise NonFinite(f"the loss is {shown} in a pack of {tokens} tokens (completion {where}); the weights are as before")
            value.backward()
            measured.add(scores, old, float(value.detach()) / scale)

    def _scores(self, batch: Batch, rollouts: list[int] | None, measured: Measured) -> Iterator[tuple[Scores, int]]:
        """Scores of every pack or group of rows, one at a time, with the tokens computed."""
        model, budget = self.weights.model, self.settings.max_tokens
        packs = batch.packs(budget, rollouts)  # also refuses what does not fit
        if self.capabilities.forest:
            work: list[list[Pack]] = [[pack] for pack in packs]
        else:
            work = group_rows(batch.rows(rollouts), budget)
        for packs in work:
            tokens = sum(len(p) for p in packs)
            measured.tokens += tokens
            yield score_forest(model, batch, packs[0]) if self.capabilities.forest else score_rows(model, batch, packs), tokens

    def _save(self, folder: Path) -> None:
        tensors = {**self.optimizer.state(), "rng": torch.get_rng_state()}
        facts = {"policy": asdict(self.policy), "steps": self.steps, "train": self.settings.train}
        checkpoint.write(folder, self.weights.model, self.weights.files.path, checkpoint.State(tensors, facts))

    def _export(self, folder: Path) -> Policy:
        probe = probe_of(self.weights.model)
        checkpoint.export(folder, self.weights.model, adapter=self.settings.train == "lora")
        probe.write(folder)
        return replace(self.policy, uri=f"file:{quote(str(folder.resolve()))}")

    def _restore(self, folder: Path) -> None:
        state = checkpoint.read(folder)
        policy, train = Policy(**state.facts["policy"]), state.facts["train"]
        if (policy.base, train) != (self.policy.base, self.settings.train):
            raise TrainerError(
                f"checkpoint {str(folder)!r} is of {policy.base!r} trained as {train!r}, but this run trains {self.policy.base!r} as "
                f"{self.settings.train!r}"
            )
        try:
            self.optimizer.load(state.tensors)
        except (KeyError, RuntimeError) as error:
            raise TrainerError(f"checkpoint {str(folder)!r} holds other parameters than are trained: {error}") from error
        torch.set_rng_state(state.tensors["rng"])
        self.steps = state.facts["steps"]
        self.weights.policy = policy


def _own_losses() -> Iterator[str]:
    """Registered losses that bring their term along; one that cannot be loaded is none."""
    for entry in registry().entries("losses"):
        with contextlib.suppress(Exception):
            if hasattr(entry.load(), "term"):
                yield entry.name


@dataclass(slots=True, eq=False)
class Measured:
    """What one step sees on its way; `metrics` says it in numbers."""

    batch: Batch
    settings: LossSettings
    old: NDArray[np.float64] = field(init=False)
    """(tokens,) the trainer's logprobs before the first optimiser step; NaN where not trained."""
    tokens: int = 0
    norms: list[float] = field(default_factory=list[float])
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("loss", "entropy", "ratio", "clipped", "count"), 0.0))

    def __post_init__(self) -> None:
        self.old = np.full(len(self.batch), np.nan)

    def add(self, scores: Scores, old: torch.Tensor, loss: float) -> None:
        """Take in one pack."""
        with torch.no_grad():
            ratio = torch.exp(scores.logprob - old)
            self.sums["loss"] += loss
            self.sums["count"] += len(ratio)
            self.sums["ratio"] += float(ratio.sum())
            self.sums["entropy"] += float(scores.entropy.sum())
            low, high = getattr(self.settings, "clip_low", None), getattr(self.settings, "clip_high", None)
            if low is not None and high is not None:
                self.sums["clipped"] += float(((ratio < 1 - low) | (ratio > 1 + high)).sum())

    def metrics(self, version: int) -> dict[str, float]:
        """`logprob_diff` compares trainer and engine: |old - recorded|, and Schulman's k3 estimate of KL(recorded, old). Of demonstrations,
        which no engine sampled, there is nothing to compare."""
        batch, sums = self.batch, self.sums
        sampled = batch.trained & np.isfinite(batch.logprob)
        leaf = batch.end == np.arange(1, len(batch) + 1)
        passes = self.settings.epochs + (len(self.norms) > 1)  # several updates need one pass without gradient first
        found = {
            "loss": sums["loss"] / len(self.norms),
            "grad_norm": float(np.mean(self.norms)),
            "tokens": float(self.tokens),
            "tokens_trained": float(batch.trained_tokens),
            "tokens_context": float(len(batch) - batch.trained_tokens),
            "forest_saving": float((batch.position[leaf] + 1).sum() / len(batch)),
            "context_repeat": self.tokens / passes - len(batch),
            "entropy": sums["entropy"] / sums["count"],
        }
        if sampled.any():
            log_ratio, gap = self.old[sampled] - batch.logprob[sampled], version - batch.version[sampled]
            found |= {
                "logprob_diff_mean": float(np.abs(log_ratio).mean()),
                "logprob_diff_max": float(np.abs(log_ratio).max()),
                "logprob_diff_kl": float((np.expm1(log_ratio) - log_ratio).mean()),
                "version_gap_mean": float(gap.mean()),
                "version_gap_max": float(gap.max()),
            }
        if len(self.norms) > 1:  # at the first update the ratio is 1 by definition
            found |= {"ratio_mean": sums["ratio"] / sums["count"], "clip_fraction": sums["clipped"] / sums["count"]}
        return found


def _numpy(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.detach().double().cpu().numpy()
