"""What a machine has: Python, packages, GPU. Standard library only, so that it runs before anything is installed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.is_available()]))"


def probe(*, import_torch: bool = True) -> dict[str, Any]:
    """Return the machine as JSON, without the keys that it cannot tell. Only an import of torch, some seconds, tells about CUDA."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "glibc": platform.libc_ver()[1] or None,
        "cpus": os.cpu_count(),
        "gpus": gpus(),
        "packages": dict(sorted(packages().items())),
    }
    if import_torch:
        version = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
        if version.returncode == 0:
            facts["torch"], facts["cuda"], facts["cuda_works"] = json.loads(version.stdout.splitlines()[-1])
    return {key: value for key, value in facts.items() if value is not None}


def packages() -> dict[str, str]:
    """Version of every installed package, by its normalised name."""
    installed = importlib.metadata.distributions()
    return {normal(name): package.version for package in installed if (name := package.metadata["Name"])}


def normal(name: str) -> str:
    """A package's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def gpus() -> list[dict[str, Any]]:
    """Name, memory in MiB, and driver of each GPU, as nvidia-smi reports them."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if answer.returncode:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]
    return [{"name": name, "memory_mib": int(memory), "driver": driver} for name, memory, driver in rows]


def commit(root: Path) -> str | None:
    """The commit of a checkout, with `+` behind it where files were changed; None without git."""

    def git(*words: str) -> str | None:
        try:
            answer = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    head = git("rev-parse", "--short=10", "HEAD")
    return None if head is None else head + ("+" if git("status", "--porcelain") else "")
