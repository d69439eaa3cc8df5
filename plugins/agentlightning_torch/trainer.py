"""The torch trainer: takes gradient steps on weights that it shares with the engine of this process.

Its jobs run one at a time in its own thread, which holds the weights' lock while it reads or changes them. A step's loss is the sum of
weight * term over the trained tokens, however they are packed. A failed step leaves weights and moments unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import CustomLoss, LossSettings
from agentlightning.contracts.model import Fit, ModelFiles, Share
from agentlightning.contracts.served_policies import MAIN
from agentlightning.contracts.trainer import Capabilities, Trainer, check_capabilities, check_mismatch
from agentlightning.errors import ConfigError, HalfStep, TrainerError
from agentlightning.registry.registry import registry
from agentlightning.rl.correction.tis import TruncatedImportanceSampling
from agentlightning.rl.loss import SFTLoss
from agentlightning.rl.schedule import learning_rate
from agentlightning.types import Policy
from agentlightning_torch import checkpoint
from agentlightning_torch.adapters import adapter_name, named_parameters, plain
from agentlightning_torch.critic import ValueHead, hidden_size
from agentlightning_torch.forward import Scores
from agentlightning_torch.frozen import FrozenStates
from agentlightning_torch.heap import give_back
from agentlightning_torch.losses import LOSSES
from agentlightning_torch.number_type import HALVES
from agentlightning_torch.optim import Optimizer, add_lora, chosen_names, lora_settings, trained_parameters
from agentlightning_torch.own_layers import add_own_layers, base_names, named_base, own_parameters, own_state
from agentlightning_torch.reference import Reference
from agentlightning_torch.scoring import Scoring, find_scoring
from agentlightning_torch.settings import TorchTrainerSettings as Settings
from agentlightning_torch.settings import check_trained_type
from agentlightning_torch.update import Update
from agentlightning_torch.weight_check import weight_check_of
from agentlightning_torch.weights import Weights, get_weights
from agentlightning_torch.workers import ending_workers

T = TypeVar("T")
log = logging.getLogger(__name__)


class TorchTrainer(Trainer):
    """See `agentlightning.contracts.trainer.Trainer`."""

    Settings = Settings

    def __init__(self, weights: Weights, settings: Settings, optimizer: Optimizer, scoring: Scoring, name: str = MAIN) -> None:
        """`name`: of the policy that it trains."""
        self.weights, self.name = weights, name
        self.settings = settings
        self.optimizer = optimizer
        self.scoring = scoring
        longest = min(settings.tokens_per_pack, scoring.longest or settings.tokens_per_pack)
        self.capabilities = replace(self.offers(settings), forest=scoring.forest, max_sequence_tokens=longest)
        self.reference = Reference(weights)
        self.critic: ValueHead | None = None
        self.critic_optimizer: Optimizer | None = None
        if settings.critic:
            self.critic = ValueHead(hidden_size(weights.model), settings.seed).to(weights.device)
            parameters = {f"critic.{name}": parameter for name, parameter in self.critic.named_parameters()}
            self.critic_optimizer = Optimizer(parameters, lr=settings.critic_lr, clip_norm=settings.clip_norm)
        self.steps = 0
        """Number of steps that changed the weights, for the schedule."""
        self._thread = ThreadPoolExecutor(1, "torch-trainer")
        self._closed = False

    @classmethod
    async def create(cls, model: ModelFiles, settings: Settings, share: Share) -> TorchTrainer:
        """Load the model, or share the engine's, and mark the trained parameters. Raises `ConfigError`."""
        if settings.schedule != "constant" and settings.total_steps is None:
            raise ConfigError(f"trainer.schedule {settings.schedule!r} needs total_steps outside a run. Set trainer.total_steps.")
        return await asyncio.to_thread(cls._create, model, settings, share)

    @classmethod
    def check_model(cls, model: ModelFiles) -> Fit:
        """See `Trainer`. It opens with a small copy of the model's architecture."""
        from agentlightning_torch.miniature import try_model

        def attempt(miniature: ModelFiles) -> str:
            trainer = cls._create(miniature, Settings(device="cpu", dtype="float32"), {})
            if trainer.capabilities.forest:
                return "as a forest: shared context is computed once"
            return "as root-to-leaf rows, which takes longer than a forest"

        return try_model(model, attempt)

    @classmethod
    @ending_workers()
    def _create(cls, model: ModelFiles, settings: Settings, share: Share) -> TorchTrainer:
        weights = get_weights(share, model, device=settings.device, dtype=settings.dtype)
        check_trained_type(str(weights.dtype).removeprefix("torch."))  # an engine may have chosen it
        with weights.lock:
            scoring = find_scoring(weights.model, model.name, settings.tokens_per_pack)
            if not scoring.forest:
                log.warning("Model %r trains as %s, not as a forest: %s. Steps take longer.", model.name, scoring.way, scoring.reason)
            optimizer = Optimizer(
                cls._trained(weights, settings, model.policy),
                lr=settings.lr,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
                clip_norm=settings.clip_norm,
            )
        return cls(weights, settings, optimizer, scoring, model.policy)

    @classmethod
    def _trained(cls, weights: Weights, settings: Settings, name: str) -> dict[str, torch.nn.Parameter]:
        """Return the trained parameters, of a fresh adapter if there is one. A named policy has an adapter or own layers beside others."""
        if name != MAIN and settings.train != "lora":
            return cls._own_layers(weights, settings, name)
        if name != MAIN:
            policy = structs.replace(weights.policy, name=name, kind="lora", version=0)
            with torch.random.fork_rng():
                torch.manual_seed(settings.seed)
                weights.add_policy(policy, lora_settings(settings.lora_rank, settings.lora_alpha, weights.files.path))
            return named_parameters(weights.model, name)
        if settings.train == "lora":
            weights.model = add_lora(weights.model, settings.lora_rank, settings.lora_alpha, settings.seed)
            weights.policy = structs.replace(weights.policy, kind="lora")
        return trained_parameters(weights.model, settings.train)

    @classmethod
    def _own_layers(cls, weights: Weights, settings: Settings, name: str) -> dict[str, torch.nn.Parameter]:
        """Give a named policy copies of the layers that it trains, and return their parameters."""
        add_own_layers(weights.model, weights.adapters, name, base_names(chosen_names(plain(weights.model), settings.train)))
        for _, parameter in named_base(weights.model):
            parameter.requires_grad_(False)
        weights.add_policy(structs.replace(weights.policy, name=name, kind="full", version=0))
        parameters = own_parameters(weights.adapters, name)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        return parameters

    @classmethod
    def offers(cls, settings: Settings) -> Capabilities:
        """See `Trainer`."""
        return Capabilities(
            losses=frozenset({*LOSSES, *_custom_losses()}),
            uris=frozenset({"memory", "file"}),
            extras=frozenset({"kl_coef", "entropy_coef", "correction"}),
            custom_losses=True,
            max_sequence_tokens=settings.tokens_per_pack,
            lora=True,
            several="lora" if settings.train == "lora" else "full",
            critic=settings.critic,
            why_no_critic="set trainer.critic = true",
        )

    @property
    def policy(self) -> Policy:
        return self.weights.policies[self.name]

    async def step(self, batch: Batch, loss: LossSettings) -> tuple[Policy, dict[str, float]]:
        return await self._run(lambda: self._step(batch, loss))

    async def values(self, batch: Batch) -> NDArray[np.float64]:
        return await self._run(lambda: self._values(batch))

    async def save(self, folder: Path) -> None:
        await self._run(lambda: self._save(Path(folder)))

    async def export(self, folder: Path) -> Policy:
        return await self._run(lambda: self._export(Path(folder)))

    async def restore(self, folder: Path) -> None:
        await self._run(lambda: self._restore(Path(folder)))

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self, work: Callable[[], T]) -> T:
        """Run a job in the trainer's thread, with exclusive use of the weights.

        A cancelled caller still waits for the end, because nobody can use half a step.
        """

        @ending_workers()
        def locked() -> T:
            with self.weights.lock, self.weights.adapters.all(None if self.name == MAIN else self.name):
                try:
                    return work()
                except torch.OutOfMemoryError as error:
                    self._forget_gradients()
                    raise TrainerError(
                        f"Out of memory: {error}. Lower trainer.tokens_per_pack ({self.settings.tokens_per_pack})."
                    ) from error
                except RuntimeError as error:
                    self._forget_gradients()
                    raise TrainerError(f"The step failed in torch: {error}. Check trainer.device and trainer.dtype.") from error

        if self._closed:
            raise TrainerError("The torch trainer is closed. Take steps before close().")
        future = asyncio.get_running_loop().run_in_executor(self._thread, locked)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    def _step(self, batch: Batch, loss: LossSettings) -> tuple[Policy, dict[str, float]]:
        check_capabilities("torch", self.capabilities, loss, critic=batch.returns is not None)
        if loss.over_pairs != (batch.pairs is not None):
            has = "no pairs" if batch.pairs is None else "pairs"
            raise TrainerError(f"Loss {loss.name!r} received a batch with {has}. Use pairs with a loss that compares them, and only then.")
        self.old_logprobs = None
        if not batch.trained_tokens:
            return self.policy, {"tokens": 0.0, "tokens_trained": 0.0, "lr": 0.0}
        started = time.perf_counter()
        update = self._update(batch, self._with_correction(loss))
        update.prepare()
        optimizers = [self.optimizer, *([self.critic_optimizer] if self.critic_optimizer and batch.returns is not None else [])]
        before = [optimizer.state() for optimizer in optimizers] if update.several or len(optimizers) > 1 else []
        lr = learning_rate(self.settings.lr, self.settings.schedule, self.settings.warmup_steps, self.settings.total_steps, self.steps)
        try:
            for _ in range(loss.epochs):
                for part in range(len(update.parts)):
                    update.gradient(part)
                    if not update.norms:
                        check_mismatch(self, batch, update.old_logprobs)
                    update.norms.append(self.optimizer.step(lr))
                    for optimizer in optimizers[1:]:
                        optimizer.step(self.settings.critic_lr)
        except BaseException as error:
            self._forget_gradients()
            for optimizer, state in zip(optimizers, before, strict=False):
                optimizer.load(state)
            if before and isinstance(error, HalfStep):
                raise TrainerError(str(error)) from error  # no longer half
            raise
        self.steps += 1
        self.old_logprobs = update.old_logprobs
        metrics = {**update.metrics(self.policy.version), "lr": lr, "seconds": time.perf_counter() - started}
        metrics["context_repeat"] = update.tokens / update.passes - len(batch)
        metrics["tokens_per_second"] = metrics["tokens"] / metrics["seconds"]
        self.weights.policy = structs.replace(self.policy, version=self.policy.version + 1)
        give_back()
        return self.policy, metrics

    def _values(self, batch: Batch) -> NDArray[np.float64]:
        check_capabilities("torch", self.capabilities, None, critic=True)
        return self._update(batch, SFTLoss()).values() if batch.trained_tokens else np.full(len(batch), np.nan)

    def _update(self, batch: Batch, loss: LossSettings) -> Update:
        def scores(rollouts: Sequence[int] | None, entropy: bool) -> Iterator[tuple[Scores, int]]:
            return self._scores(self.weights.model, batch, rollouts, entropy, frozen)

        update = Update(batch, loss, scores, self.reference.applied, self.critic, self.settings.value_clip)
        frozen = FrozenStates(plain(self.weights.model), len(batch)) if update.repeats else None
        return update

    def _with_correction(self, loss: LossSettings) -> LossSettings:
        """Correct a ratio by truncated importance sampling by default where weights have 16 bits: engine and trainer round differently."""
        if loss.correction is None and loss.has_ratio and self.weights.dtype in HALVES:
            return replace(loss, correction=TruncatedImportanceSampling())
        return loss

    def _forget_gradients(self) -> None:
        self.optimizer.zero()
        if self.critic_optimizer is not None:
            self.critic_optimizer.zero()

    def _scores(
        self, model: Any, batch: Batch, rollouts: Sequence[int] | None, entropy: bool, frozen: FrozenStates | None = None
    ) -> Iterator[tuple[Scores, int]]:
        return self.scoring.scores(model, batch, self.settings.tokens_per_pack, rollouts, entropy=entropy, frozen=frozen)

    def _save(self, folder: Path) -> None:
        critic = {} if self.critic_optimizer is None else self.critic_optimizer.tensors()
        tensors = {**self.optimizer.tensors(), **critic, "rng": torch.get_rng_state()}
        facts = {"policy": structs.asdict(self.policy), "steps": self.steps, "train": self.settings.train, **self._kept_settings()}
        checkpoint.write(folder, self.weights.model, self.weights.files.path, checkpoint.State(tensors, facts), self._adapter, self._own())

    def _export(self, folder: Path) -> Policy:
        probe = weight_check_of(self.weights.model)
        adapted = self.settings.train == "lora"
        checkpoint.export(folder, self.weights.model, adapter=adapted, name=self._adapter, own=self._own())
        probe.write(folder)
        return structs.replace(self.policy, uri=f"file:{quote(str(folder.resolve()))}")

    @property
    def _adapter(self) -> str | None:
        """The name of its adapter in peft, if it is one of several; None: it trains the only policy, or own layers."""
        return None if self.name == MAIN or self.settings.train != "lora" else adapter_name(self.name)

    def _own(self) -> dict[str, torch.Tensor] | None:
        """Return the full state of a policy with own layers; None: it has none."""
        if self.name == MAIN or self.settings.train == "lora":
            return None
        return own_state(self.weights.model, self.weights.adapters, self.name)

    def _kept_settings(self) -> dict[str, str | int | float]:
        """Return the settings that a checkpoint's weights do not tell, and that a resumed run must keep."""
        kept: dict[str, str | int | float] = {"dtype": str(self.weights.dtype).removeprefix("torch.")}
        if self.settings.train == "lora":
            kept |= {"lora_rank": self.settings.lora_rank, "lora_alpha": self.settings.lora_alpha}
        return kept

    def _restore(self, folder: Path) -> None:
        state = checkpoint.read(folder)
        policy, train = Policy(**state.facts["policy"]), state.facts["train"]
        if (policy.base, train) != (self.policy.base, self.settings.train):
            raise TrainerError(
                f"checkpoint {str(folder)!r} is of {policy.base!r} trained as {train!r}, but this run trains {self.policy.base!r} as "
                f"{self.settings.train!r}. Use the checkpoint's settings."
            )
        if policy.name != self.name:
            raise TrainerError(
                f"checkpoint {str(folder)!r} is of policy {policy.name!r}, but this trainer trains {self.name!r}. Use that policy's "
                "checkpoint."
            )
        for name, ours in self._kept_settings().items():
            saved = state.facts.get(name, ours)
            if saved != ours:
                raise TrainerError(
                    f"checkpoint {str(folder)!r} was trained with {name} {saved!r}, but this run has {ours!r}. "
                    f"Set trainer.{name} = {json.dumps(saved)} in the run's config.toml."
                )
        try:
            self.optimizer.load(state.tensors)
            if self.critic_optimizer is not None:
                self.critic_optimizer.load(state.tensors)
        except (KeyError, RuntimeError) as error:
            raise TrainerError(
                f"checkpoint {str(folder)!r} has different parameters than this run trains: {error}. Use the run's own settings."
            ) from error
        torch.set_rng_state(state.tensors["rng"])
        self.steps = state.facts["steps"]
        self.weights.policy = policy


def _custom_losses() -> Iterator[str]:
    """Return the names of registered custom losses, without those that fail to load."""
    for entry in registry().entries("losses"):
        with contextlib.suppress(Exception):
            target = entry.load()
            if inspect.isfunction(target) or issubclass(target, CustomLoss):
                yield entry.name
