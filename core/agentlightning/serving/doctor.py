"""The hardware of this machine, the engine and trainer that fit it, and tests of the installed plugins.

Each check runs in a Python of its own, so a crash, a hang or a patch harms no other check. `python -m agentlightning.serving.doctor NAME`
runs one check and prints its result as JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentlightning.config.model_facts import BYTES_CPU, BYTES_FROZEN, BYTES_FULL
from agentlightning.errors import ConfigError, MissingExtra
from agentlightning.registry.registry import Registry, registry

LIMIT = 120.0
"""Seconds that a check may take; it should take ten."""
PACKAGES = (
    "torch", "transformers", "peft", "renderers", "langchain", "langgraph", "langchain-openai", "openai", "openai-agents",
    "autogen-agentchat", "vllm", "verl", "ray",
)  # fmt: skip
SHARE = 0.6
"""Fraction of the memory for parameters. Activations, keys and values need the rest."""


@dataclass(frozen=True, slots=True)
class GPU:
    name: str
    memory: int
    """Bytes."""
    free: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware and packages of a machine."""

    system: str
    python: str
    cores: int
    memory: int | None
    """Bytes; None: unknown."""
    disk_free: int
    """Bytes, where this process runs."""
    gpus: tuple[GPU, ...]
    driver: str | None
    """Version of the NVIDIA driver."""
    packages: dict[str, str]
    """Versions, by name."""


@dataclass(frozen=True, slots=True)
class Advice:
    engine: str
    trainer: str
    why: str
    full: float
    """Parameters, in billions, of the largest model that can be trained in full."""
    lora: float
    """With LoRA."""
    commands: tuple[str, ...]
    """Commands that install the missing packages."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a check."""

    name: str
    state: Literal["works", "missing", "broken"]
    message: str
    seconds: float


def machine() -> Machine:
    """Inspect this machine. Runs `nvidia-smi`, and imports nothing heavy."""
    gpus, driver = find_gpus()
    memory: int | None = None
    with suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    versions: dict[str, str] = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return Machine(
        f"{platform.system()} {platform.release()} {platform.machine()}",
        platform.python_version(),
        cores,
        memory,
        shutil.disk_usage(Path.cwd()).free,
        gpus,
        driver,
        versions,
    )


def advise(this: Machine) -> Advice:
    """Recommend an engine and a trainer for a machine, and the commands that install them."""
    commands = {
        "torch": "pip install 'agentlightning[torch]'",
        "vllm": "pip install 'agentlightning[vllm]'  # in an environment of its own, named as engine.python",
        "verl": "pip install 'agentlightning[torch,verl]'",
    }
    engine = trainer = "torch"
    frozen, training = BYTES_FROZEN, 1
    memory = min((gpu.memory for gpu in this.gpus), default=this.memory or 0)
    if not this.gpus:
        frozen = BYTES_CPU
        why = "without a GPU, engine and trainer share one copy of the weights in this process"
    elif len(this.gpus) == 1:
        why = "one GPU: engine and trainer share one copy of the weights; many rollouts at once are faster with engine vllm (sleep = true)"
    else:
        engine, trainer, serving = "vllm", "verl", len(this.gpus) // 2
        training = len(this.gpus) - serving
        why = f"{len(this.gpus)} GPUs: vLLM serves on {serving}, verl shards the training over {training}"
    parameters = SHARE * memory * training / 1e9
    missing = [commands[name] for name in dict.fromkeys((engine, trainer)) if name not in this.packages]
    return Advice(engine, trainer, why, parameters / BYTES_FULL, parameters / frozen, tuple(missing))


def check(name: str, plugins: Registry | None = None) -> Checked:
    """Run one check in a Python of its own."""
    entry = (plugins or registry()).entry("checks", name)
    if entry.missing:
        return Checked(name, "missing", entry.install, 0.0)
    began = time.monotonic()
    command = [sys.executable, "-m", "agentlightning.serving.doctor", name]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)  # noqa: S603 (this very module)
    except subprocess.TimeoutExpired:
        return Checked(name, "broken", f"it did not finish within {LIMIT:g} s", time.monotonic() - began)
    seconds = time.monotonic() - began
    try:
        result = json.loads(ran.stdout.strip().splitlines()[-1])
        return Checked(name, result["state"], result["message"], seconds)
    except (ValueError, IndexError, KeyError, TypeError):
        last_line = (ran.stderr.strip().splitlines() or ["no output"])[-1]
        return Checked(name, "broken", f"exit code {ran.returncode}: {last_line}", seconds)


def find_gpus() -> tuple[tuple[GPU, ...], str | None]:
    """Return the NVIDIA GPUs and the version of their driver; none without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), None
    query = [program, "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits"]
    try:
        ran = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)  # noqa: S603 (the driver's own program)
        rows = [[part.strip() for part in line.split(",")] for line in ran.stdout.splitlines() if line.strip()]
        gpus = tuple(GPU(name, int(total) * 2**20, int(free) * 2**20) for name, total, free, _ in rows)
        return gpus, rows[0][3] if rows else None
    except (OSError, subprocess.SubprocessError, ValueError):
        return (), None


def main() -> None:
    """Run one check in this Python."""
    try:
        result = {"state": "works", "message": registry().load("checks", sys.argv[1])()}
    except (MissingExtra, ConfigError) as error:
        result = {"state": "missing", "message": str(error)}
    except Exception as error:
        result = {"state": "broken", "message": f"{type(error).__name__}: {error}"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
