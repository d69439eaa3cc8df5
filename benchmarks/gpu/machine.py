"""Describes a machine: Python, packages, GPU. Uses only the standard library, so that it runs before anything is installed."""

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
    """Return the machine as JSON, without unknown keys. Importing torch, which takes seconds, is the only way to detect CUDA."""
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
    """Return the version of each installed package by normalised name."""
    installed = importlib.metadata.distributions()
    return {normal(name): package.version for package in installed if (name := package.metadata["Name"])}


def normal(name: str) -> str:
    """Normalise a package name as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def gpus() -> list[dict[str, Any]]:
    """Return name, memory in MiB, and driver of each GPU, as reported by nvidia-smi."""
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
    """Return the commit of a checkout, with a trailing `+` for uncommitted changes. Return None without git."""

    def git(*words: str) -> str | None:
        try:
            answer = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    head = git("rev-parse", "--short=10", "HEAD")
    return None if head is None else head + ("+" if git("status", "--porcelain") else "")
