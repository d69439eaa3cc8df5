"""Settings of the torch engine and trainer. Light to import, so that `agl config --schema` needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from agentlightning.contracts.engine import EngineSettings
from agentlightning.contracts.trainer import TrainerSettings
from agentlightning.errors import ConfigError
from agentlightning.settings import Beta, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

TRAINED = "'full', 'lora' or 'top:N' (such as 'top:8')"


@dataclass(frozen=True, kw_only=True)
class TorchEngineSettings(EngineSettings):
    """Settings of the torch engine. `device` and `dtype` are those of the weights, which the trainer shares."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`."""
    dtype: str = "auto"
    """`auto` (bfloat16 on a GPU, else float32), `float32`, `bfloat16`, `float16`, `float64`."""
    max_batch: PositiveInt = 32
    """Replies decoded together at most; others wait."""
    memory_gb: PositiveFloat | None = None
    """For keys and values, those kept for a next turn included. None: 2 on a CPU, 30 % of a GPU's memory."""
    copy_weights: bool | None = None
    """Whether to hold a copy of the weights, so that replies go on while the trainer steps; it takes as much memory again. Absent: where
    `collection.max_staleness` is above 0."""


@dataclass(frozen=True, kw_only=True)
class TorchTrainerSettings(TrainerSettings):
    """Of the torch trainer."""

    train: Annotated[str, Meta(pattern="^(full|lora|top:0*[1-9][0-9]*)$", description=TRAINED)] = "full"
    """`full`; `top:N`, the last N layers and the final norm; or `lora`."""
    lora_rank: PositiveInt = 16
    lora_alpha: PositiveFloat = 32.0
    lr: Annotated[float, Meta(gt=0, lt=1, description="1e-5 is usual, 1e-4 for LoRA")] = 1e-5
    weight_decay: NonNegativeFloat = 0.0
    """On matrices; norms and biases never decay."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    clip_norm: PositiveFloat = 1.0
    """The gradient is scaled down to this norm."""
    critic: bool = False
    """A value head, for advantages that need one (`gae`)."""
    critic_lr: Annotated[float, Meta(gt=0, lt=1, description="1e-3 is usual")] = 1e-3
    """Its own learning rate, constant."""
    value_clip: PositiveFloat | None = 0.2
    """How far a step may move a value; absent: any distance."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Of lr after the warm-up; linear and cosine reach 0 at `total_steps`."""
    warmup_steps: NonNegativeInt = 0
    total_steps: int | None = None
    """Absent: the steps of the run."""
    tokens_per_pack: PositiveInt = 4096
    """Tokens computed at once: what bounds the memory. A conversation must fit."""
    device: str = "auto"
    dtype: str = "auto"
    """Of the weights; `auto` is bfloat16 on a GPU (steps are taken on a float32 copy) and float32 on a CPU."""
    seed: int = 0
    """Of a fresh LoRA adapter."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule != "constant" and self.total_steps is not None and self.total_steps <= self.warmup_steps:
            problem = f"trainer.total_steps is {self.total_steps}, but trainer.warmup_steps is {self.warmup_steps}"
            raise ConfigError(f"{problem}. Schedule {self.schedule!r} needs more total steps than warm-up steps.")
