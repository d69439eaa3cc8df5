"""The command line and the environment of a vLLM server."""

from __future__ import annotations

import math
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from agentlightning.errors import EngineError
from agentlightning.training.weight_sync import WeightCheck
from agentlightning.types import Policy
from agentlightning_vllm.environment import Environment
from agentlightning_vllm.settings import VllmSettings

NAME = "main"
"""The server's name for the model."""
ADAPTER = "adapter"
"""The server's name for the LoRA adapter."""
HALVES = ("bfloat16", "float16")
"""Number types with 16 bits."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for --max-lora-rank."""


@dataclass(frozen=True, slots=True)
class Order:
    """How to start an engine's servers."""

    settings: VllmSettings
    environment: Environment
    model: str
    """Folder or hub id of the model: the source of the tokenizer, and the base of an adapter."""
    context: int

    def dtype(self, check: WeightCheck | None) -> str:
        """Return the number type of a server. On a CPU, `auto` is that of the trainer, as the weight check tells."""
        if self.settings.dtype != "auto":
            return self.settings.dtype
        if not self.environment.cpu:
            return "bfloat16"
        return check.dtype if check is not None and check.dtype in HALVES else "float32"

    def arguments(self, policy: Policy, weights: str, rank: int | None, port: int) -> list[str]:
        """Return the command line of a server for these weights. `rank` is the adapter's."""
        settings, cpu = self.settings, self.environment.cpu
        line = [
            self.environment.python, "-m", "vllm.entrypoints.openai.api_server",
            "--model", self.model if policy.kind == "lora" else weights,
            "--tokenizer", self.model,
            "--served-model-name", NAME,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--dtype", self.dtype(WeightCheck.of(policy)),
            "--max-model-len", str(self.context),
            "--logprobs-mode", "processed_logprobs",
            "--generation-config", "vllm",  # the model's files must not change our sampling
            "--stream-interval", "8",
            "--disable-uvicorn-access-log",
        ]  # fmt: skip
        if cpu:
            # Chunked prefill returns a seeded request's generator, which is impossible on a CPU: it kills vLLM 0.32's engine.
            line += ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(2048, self.context))]
        elif settings.memory_gb is not None:
            line += ["--kv-cache-memory-bytes", str(int(settings.memory_gb * 2**30))]
        elif not any(argument.startswith("--gpu-memory-utilization") for argument in settings.args):
            line += ["--gpu-memory-utilization", "0.4"]
        if rank is not None:
            line += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(lora_rank(rank))]
        if settings.sleep:
            line += ["--enable-sleep-mode"]
        return [*line, *settings.args]

    def variables(self, key: str, number: int) -> dict[str, str]:
        """Return the environment of server `number`."""
        settings = self.settings
        variables = {
            **os.environ,
            "VLLM_API_KEY": key,
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        if Path(self.model).is_dir():
            variables["HF_HUB_OFFLINE"] = "1"
        if settings.devices:
            variables["CUDA_VISIBLE_DEVICES"] = settings.devices[number]
        if self.environment.cpu:
            variables["VLLM_CPU_KVCACHE_SPACE"] = str(math.ceil(settings.memory_gb or 2))
            variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        return variables


def lora_rank(rank: int) -> int:
    """Return the smallest --max-lora-rank that fits an adapter of this rank."""
    if rank > LORA_RANKS[-1]:
        raise EngineError(f"The adapter has rank {rank}, and vLLM serves at most {LORA_RANKS[-1]}. Train one of a lower rank.")
    return next(limit for limit in LORA_RANKS if limit >= rank)


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def new_key() -> str:
    return secrets.token_urlsafe(24)
