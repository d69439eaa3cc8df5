"""Settings of the torch engine and trainer. Cheap to import, so that `agl config --schema` needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from agentlightning.contracts.engine import EngineSettings
from agentlightning.contracts.trainer import TrainerSettings
from agentlightning.errors import ConfigError
from agentlightning.rl.schedule import check_schedule
from agentlightning.settings import Beta, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

TRAINED = "'full', 'lora', or 'top:N' (such as 'top:8')"


@dataclass(frozen=True, kw_only=True)
class TorchEngineSettings(EngineSettings):
    """Settings of the torch engine. It shares the weights' `device` and `dtype` with the trainer."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, or `cuda:1`."""
    dtype: str = "auto"
    """`auto`, `float32`, `bfloat16`, `float16`, or `float64`. `auto` is bfloat16 on a GPU and on a CPU that is faster with it, else
    float32."""
    max_batch: PositiveInt = 32
    """Maximum number of replies decoded together. Others wait."""
    memory_gb: PositiveFloat | None = None
    """Size of the KV cache in GB, including the prefix cache. Default: 2 on a CPU, 30% of the memory on a GPU."""
    copy_weights: bool | None = None
    """Keep a second copy of the weights, so that replies continue during trainer steps. It doubles the memory for weights. Default: true if
    `collection.max_staleness` is above 0."""


@dataclass(frozen=True, kw_only=True)
class TorchTrainerSettings(TrainerSettings):
    """Settings of the torch trainer."""

    train: Annotated[str, Meta(pattern="^(full|lora|top:0*[1-9][0-9]*)$", description=TRAINED)] = "full"
    """Weights to train: `full`, `top:N` (the last N layers and the final norm), or `lora`."""
    lora_rank: PositiveInt = 16
    """Rank of a fresh LoRA adapter."""
    lora_alpha: PositiveFloat = 32.0
    """The adapter counts `lora_alpha / lora_rank` times."""
    lr: Annotated[float, Meta(gt=0, lt=1, description="1e-5 is usual, 1e-4 for LoRA")] = 1e-5
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of matrices. Norms and biases never decay."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of AdamW's averages of the gradient and of its square."""
    clip_norm: PositiveFloat = 1.0
    """Maximum gradient norm. Larger gradients are scaled down to it."""
    critic: bool = False
    """Add a value head, for advantages that need one (`gae`)."""
    critic_lr: Annotated[float, Meta(gt=0, lt=1, description="1e-3 is usual")] = 1e-3
    """Constant learning rate of the critic."""
    value_clip: PositiveFloat | None = 0.2
    """Maximum change of a value in one step. Leave it out for no limit."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule of `lr` after the warm-up. `linear` and `cosine` reach 0 at `total_steps`."""
    warmup_steps: NonNegativeInt = 0
    """Steps in which `lr` rises from 0."""
    total_steps: int | None = None
    """Length of the schedule. Default: the steps of the run."""
    tokens_per_pack: PositiveInt = 4096
    """Maximum number of tokens computed at once. Sets the memory use. Every conversation must fit."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, or `cuda:1`, as for the engine."""
    dtype: str = "auto"
    """`auto`, `float32`, `bfloat16`, or `float64`, as for the engine. With bfloat16, steps update a float32 copy of the trained weights.
    float16 is refused: it rounds small gradients to 0."""
    seed: int = 0
    """Random seed of a fresh LoRA adapter."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_trained_type(self.dtype)
        check_schedule(self.schedule, self.warmup_steps, self.total_steps)


def check_trained_type(dtype: str) -> None:
    """Raise `ConfigError` for a number type that a trainer cannot train in."""
    if dtype == "float16":
        raise ConfigError(
            "trainer.dtype is 'float16', which rounds small gradients to 0. Use 'bfloat16' or 'float32', for engine and trainer alike."
        )
