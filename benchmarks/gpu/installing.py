"""Installs the pieces on a machine: unpacked parcels, and a Python environment with the checkout."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

from machine import packages
from pieces import Index, PiecesError, assemble

ROOT = Path(__file__).resolve().parents[2]
REPACK = "Run this with the Python that has torch, or pack for this machine: benchmarks/gpu/run --probe > probe.json, then pack --machine."
PARCELS = ("wheels", "data", "smollm2", "qwen05")
"""The parcels that `pack` builds, in upload order. `data` is optional."""


def arrive(index: Index | None, pieces: Path | None, out: Path) -> dict[str, list[str]]:
    """Unpack the complete parcels. Return the missing pieces of every other parcel."""
    if index is None or pieces is None:
        return {}
    missing: dict[str, list[str]] = {}
    for parcel in dict.fromkeys((*index.parcels, *PARCELS)):
        if absent := assemble(index, parcel, pieces, out / "parcels" / parcel):
            missing[parcel] = absent
            print(f"parcel {parcel}: waits for {shortened(absent)}", flush=True)
        else:
            print(f"parcel {parcel}: here", flush=True)
    return missing


def install(out: Path, missing: dict[str, list[str]], index: Index | None) -> str | None:
    """Return the Python of an environment with the checkout and its wheels, or None while wheels are missing.

    Without pieces, return the current Python, which must have the project installed.
    """
    if index is None:
        if "agentlightning" not in packages():
            raise PiecesError(
                f"{sys.executable} does not have Agent Lightning. Run `make setup` and use .venv/bin/python, or give --pieces."
            )
        return sys.executable
    check_machine(index)
    if "wheels" in missing:
        return None
    wheels, environment = out / "parcels" / "wheels", out / "environment"
    python, mark = environment / "bin" / "python", environment / ".installed"
    wanted = (wheels / ".complete").read_text() + str(ROOT)
    if mark.is_file() and mark.read_text() == wanted:
        return str(python)
    print("installing into " + str(environment), flush=True)
    call([sys.executable, "-m", "venv", "--clear", "--without-pip", str(environment)])
    # The environment also sees the packages of the current Python, with lower priority. That Python may itself be in an environment.
    (site,) = environment.glob("lib/python*/site-packages")
    paths = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "machine.pth").write_text("".join(f"{path}\n" for path in paths))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-index", "--no-deps", "--no-cache-dir"]
    if files := sorted(map(str, wheels.glob("*.whl"))):
        call([*pip, *files])
    call([*pip, "--no-build-isolation", "--editable", str(ROOT)])
    try:
        call([str(python), "-c", "import torch, transformers, peft, agentlightning.cli.main"])
    except PiecesError as error:
        raise PiecesError(f"The environment lacks something: {str(error).splitlines()[-1]}. {REPACK}") from error
    mark.write_text(wanted)
    return str(python)


def check_machine(index: Index) -> None:
    """Raise `PiecesError` if the pieces were packed for a different Python or platform."""
    own = {"python": ".".join(platform.python_version_tuple()[:2]), "platform": f"{sys.platform}-{platform.machine()}"}
    packed = {"python": ".".join(str(index.machine.get("python", "")).split(".")[:2]), "platform": index.machine.get("platform")}
    for key, value in own.items():
        if packed[key] != value:
            raise PiecesError(f"The pieces are for {key} {packed[key]}, and this is {value}. {REPACK}")


def call(command: list[str]) -> None:
    """Run an installation command. Raises a `PiecesError` with the end of its output."""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise PiecesError(f"{' '.join(command[:6])} ... failed: {(answer.stderr or answer.stdout)[-600:].strip()}")


def shortened(names: list[str], most: int = 4) -> str:
    """Shorten a list of names to one line."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
