"""Settings of the verl trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from agentlightning.contracts.trainer import TrainerSettings
from agentlightning.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class VerlSettings(TrainerSettings):
    """Settings of the verl trainer. Credit, advantage, loss weights and the learning rate schedule are Agent Lightning's, never verl's."""

    python: str | None = None
    """A Python with verl. Absent: this one."""
    workers: int = 1
    """Processes on each node: one for each GPU."""
    nodes: int = 1
    ray_address: str | None = None
    """A running Ray cluster (`auto`, `ray://host:10001`). Absent: the trainer starts one on this machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    train: Literal["full", "lora"] = "full"
    lora_rank: int = 16
    lora_alpha: int = 32
    lr: float = 1e-6
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule of lr after the warm-up. Linear and cosine reach 0 at `total_steps`."""
    warmup_steps: int = 0
    total_steps: int | None = None
    """Absent: the steps of the run."""
    tokens_per_pack: int = 16384
    """Micro-batch of one worker, in tokens; it bounds the memory. The longest conversation must fit."""
    offload: bool = False
    """Keep weights and optimizer state in the machine's memory between steps."""
    gradient_checkpointing: bool = True
    """Recompute activations instead of keeping them."""
    start_timeout: float = 900.0
    """Seconds for Ray and the workers to start."""

    def __post_init__(self) -> None:
        if isinstance(self.betas, list):  # from TOML
            object.__setattr__(self, "betas", tuple(self.betas))
        rules: dict[str, tuple[bool, str]] = {
            "workers": (self.workers >= 1, "at least 1"),
            "nodes": (self.nodes >= 1, "at least 1"),
            "device": (self.device in ("auto", "cpu", "cuda"), "'auto', 'cpu' or 'cuda'"),
            "train": (self.train in ("full", "lora"), "'full' or 'lora' (top layers alone: trainer 'torch')"),
            "lora_rank": (self.lora_rank >= 1, "at least 1"),
            "lora_alpha": (self.lora_alpha > 0, "above 0"),
            "lr": (0 < self.lr < 1, "above 0 and below 1 (1e-6 is usual, 1e-5 for LoRA)"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "betas": (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            "clip_norm": (self.clip_norm > 0, "above 0"),
            "schedule": (self.schedule in ("constant", "linear", "cosine"), "'constant', 'linear' or 'cosine'"),
            "warmup_steps": (self.warmup_steps >= 0, "0 or more"),
            "tokens_per_pack": (self.tokens_per_pack >= 1, "at least 1"),
            "start_timeout": (self.start_timeout > 0, "above 0"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise ConfigError(f"trainer.{name} is {getattr(self, name)!r}. Expected {expected}.")
        if self.nodes > 1 and self.ray_address is None:
            raise ConfigError(f'trainer.nodes is {self.nodes}, which needs a Ray cluster. Name it, as in trainer.ray_address = "auto".')

    def facts(self) -> dict[str, Any]:
        """The settings for verl's process."""
        names = ("workers", "nodes", "ray_address", "train", "lora_rank", "lora_alpha", "lr", "weight_decay", "betas", "clip_norm")
        return {name: getattr(self, name) for name in (*names, "tokens_per_pack", "offload", "gradient_checkpointing")}
