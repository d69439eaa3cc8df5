"""How a vLLM server is started."""

from __future__ import annotations

import math
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from agentlightning.errors import EngineError
from agentlightning.types import Policy
from agentlightning_vllm.environment import Environment
from agentlightning_vllm.settings import Settings

NAME = "main"
"""What the server calls the model."""
ADAPTER = "adapter"
"""What it calls the LoRA adapter."""


@dataclass(frozen=True, slots=True)
class Order:
    """What every server of an engine is started with."""

    settings: Settings
    environment: Environment
    model: str
    """Folder or hub id of the model as it was found: the tokenizer, and the base of an adapter."""
    context: int
    dtype: str

    def arguments(self, policy: Policy, weights: str, rank: int | None, port: int) -> list[str]:
        """The command line of a server of some weights; `rank` is of the adapter."""
        settings, cpu = self.settings, self.environment.cpu
        line = [
            self.environment.python, "-m", "vllm.entrypoints.openai.api_server",
            "--model", self.model if policy.kind == "lora" else weights,
            "--tokenizer", self.model,
            "--served-model-name", NAME,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--dtype", self.dtype,
            "--max-model-len", str(self.context),
            "--logprobs-mode", "processed_logprobs",
            "--generation-config", "vllm",  # no sampling that the model's files ask for behind our back
            "--stream-interval", "8",
            "--disable-uvicorn-access-log",
        ]  # fmt: skip
        if cpu:
            # a prompt in parts makes vLLM take a seeded request's generator back, which the CPU's cannot (0.32: its engine dies of it)
            line += ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(2048, self.context))]
        elif settings.memory_gb is not None:
            line += ["--kv-cache-memory-bytes", str(int(settings.memory_gb * 2**30))]
        elif not any(each.startswith("--gpu-memory-utilization") for each in settings.args):
            line += ["--gpu-memory-utilization", "0.4"]
        if rank is not None:
            line += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(lora_rank(rank))]
        if settings.sleep:
            line += ["--enable-sleep-mode"]
        return [*line, *settings.args]

    def variables(self, key: str, number: int) -> dict[str, str]:
        """Environment variables of a server."""
        settings = self.settings
        return {
            **os.environ,
            "VLLM_API_KEY": key,
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_NO_USAGE_STATS": "1",
            **({"HF_HUB_OFFLINE": "1"} if Path(self.model).is_dir() else {}),
            **({"CUDA_VISIBLE_DEVICES": settings.devices[number]} if settings.devices else {}),
            **(
                {"VLLM_CPU_KVCACHE_SPACE": str(math.ceil(settings.memory_gb or 2)), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
                if self.environment.cpu
                else {}
            ),
        }


def lora_rank(rank: int) -> int:
    """The least rank that vLLM can be started for and that holds this one."""
    known = (1, 8, 16, 32, 64, 128, 256, 320, 512)
    if rank > known[-1]:
        raise EngineError(f"vLLM serves LoRA adapters of rank {known[-1]} at most, and this one has {rank}")
    return next(each for each in known if each >= rank)


def free_port() -> int:
    """A port of the loopback that was free just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def new_key() -> str:
    return secrets.token_urlsafe(24)
