"""Makes the environment of each framework, one at a time, and skips those that are complete.

python tests/frameworks/environments.py .venv-frameworks [NAME ...]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from frameworks import FRAMEWORKS, Framework

ROOT = Path(__file__).parents[2]


def make(folder: Path, framework: Framework) -> None:
    """Make one environment with the checkout and the framework's extra."""
    home = folder / framework.name
    stamp = home / ".installed"
    if stamp.exists() and stamp.stat().st_mtime > (ROOT / "pyproject.toml").stat().st_mtime:
        return
    print(f"Setting up {home} ...", flush=True)
    venv.create(home, clear=True)
    python = home / "bin" / "python"
    wanted = ["-e", f"{ROOT}[serve,{framework.name}]", *framework.install]
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "--no-input", "--python", str(python)]
    subprocess.run([*pip, "install", *wanted], check=True)
    stamp.touch()


def make_plain(folder: Path, package: str) -> None:
    """Make an environment with one package and without the checkout: its program speaks to the gateway alone."""
    home = folder / package
    if (home / ".installed").exists():
        return
    print(f"Setting up {home} ...", flush=True)
    venv.create(home, clear=True)
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "--no-input", "--python", str(home / "bin" / "python")]
    subprocess.run([*pip, "install", package], check=True)
    (home / ".installed").touch()


def make_node(folder: Path) -> None:
    """Make the folder of the AI SDK's program, with its packages."""
    shutil.copytree(ROOT / "tests" / "frameworks" / "ai_sdk", folder / "ai-sdk", dirs_exist_ok=True)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=folder / "ai-sdk", check=True)


if __name__ == "__main__":
    for framework in FRAMEWORKS:
        if framework.name in sys.argv[2:] or len(sys.argv) == 2:
            make(Path(sys.argv[1]), framework)
    if len(sys.argv) == 2 or "instructor" in sys.argv[2:]:
        make_plain(Path(sys.argv[1]), "instructor")  # it wants an older openai than the other packages
    if shutil.which("npm") is not None and (len(sys.argv) == 2 or "ai-sdk" in sys.argv[2:]):
        make_node(Path(sys.argv[1]))
