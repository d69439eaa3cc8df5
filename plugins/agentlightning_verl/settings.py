"""Settings of the verl trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from agentlightning.contracts.trainer import TrainerSettings
from agentlightning.errors import ConfigError
from agentlightning.rl.schedule import check_schedule
from agentlightning.settings import Beta, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True)
class VerlSettings(TrainerSettings):
    """Settings of the verl trainer. Agent Lightning computes credit, advantage, loss weights, and the learning rate schedule, never
    verl."""

    python: str | None = None
    """A Python with verl. Default: this one."""
    workers: PositiveInt = 1
    """Processes per node, one per GPU."""
    nodes: PositiveInt = 1
    """Machines of the Ray cluster."""
    ray_address: str | None = None
    """Address of a running Ray cluster (`auto`, `ray://host:10001`). Default: the trainer starts one on this machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPUs if there are any."""
    train: Annotated[Literal["full", "lora"], Meta(description="trainer 'torch' has 'top:N'")] = "full"
    lora_rank: PositiveInt = 16
    """Rank of a fresh LoRA adapter."""
    lora_alpha: PositiveInt = 32
    """The adapter counts `lora_alpha / lora_rank` times."""
    lr: Annotated[float, Meta(gt=0, lt=1, description="1e-6 is usual, 1e-5 for LoRA")] = 1e-6
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of matrices. Norms and biases never decay."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of AdamW's averages of the gradient and of its square."""
    clip_norm: PositiveFloat = 1.0
    """Maximum gradient norm. Larger gradients are scaled down to it."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule of `lr` after the warm-up. `linear` and `cosine` reach 0 at `total_steps`."""
    warmup_steps: NonNegativeInt = 0
    """Steps in which `lr` rises from 0."""
    total_steps: PositiveInt | None = None
    """Length of the schedule. Default: the steps of the run."""
    tokens_per_pack: PositiveInt = 16384
    """Maximum number of tokens that a worker computes at once. Sets the memory use. Every conversation must fit."""
    offload: bool = False
    """Keep weights and optimizer state in CPU memory between steps."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass instead of keeping them. Saves memory."""
    start_timeout: PositiveFloat = 900.0
    """Maximum seconds for Ray and the workers to start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nodes > 1 and self.ray_address is None:
            raise ConfigError(f'trainer.nodes is {self.nodes}, but no Ray cluster is named. Set trainer.ray_address = "auto".')
        check_schedule(self.schedule, self.warmup_steps, self.total_steps)

    def facts(self) -> dict[str, Any]:
        """Return the settings for verl's process."""
        names = ("workers", "nodes", "ray_address", "train", "lora_rank", "lora_alpha", "lr", "weight_decay", "betas", "clip_norm")
        return {name: getattr(self, name) for name in (*names, "tokens_per_pack", "offload", "gradient_checkpointing")}
