"""Works through the measurements of a GPU machine, one step after the other, and keeps every result at once.

    benchmarks/gpu/run --probe                           what this machine has, as JSON; seconds
    benchmarks/gpu/run --pieces FOLDER --out FOLDER      assemble, install, measure
    benchmarks/gpu/run --dry --out FOLDER                every step at toy size, on the CPU

Results go to OUT/results.jsonl, one line a step, with GPU, driver, versions and commit. A step that has a result is skipped, so the same
command continues where the last one stopped, also on another machine that is given the file. A step whose pieces have not arrived is
skipped by name and tried again next time. Everything else that a step leaves is in OUT/steps/NAME. See benchmarks/gpu/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from installing import ROOT, arrive, install, some
from machine import commit, probe
from pieces import PiecesError, read_index
from results import RESULTS, Results

GRACE = 20.0
"""Seconds that a step has to stop after SIGINT."""
LEAST = 20.0
"""Seconds that must be left of a call for a step to begin."""
MARK = "AGL_GPU_OUT"
"""Variable of every step's processes: the folder they work for."""
TAIL = 2000
"""Characters of a failed step's log that its result keeps."""


@dataclass(frozen=True)
class Place:
    """Where a step works and what it works with."""

    python: str
    out: Path
    dry: bool

    @property
    def parcels(self) -> Path:
        return self.out / "parcels"


@dataclass(frozen=True)
class Step:
    """One measurement: a command that leaves `figures.jsonl` in its working folder, one JSON object a line, each written at once."""

    name: str
    title: str
    command: tuple[str, ...]
    """Arguments for Python; the command runs in OUT/steps/NAME."""
    minutes: float
    """Time limit over all calls."""
    parcels: tuple[str, ...] = ()
    """Without these it is skipped."""
    module: str | None = None
    """Skipped where this is not installed."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probe", action="store_true", help="print what this machine has, and stop")
    parser.add_argument("--pieces", type=Path, metavar="FOLDER", help="what benchmarks/gpu/pack filled, as far as it has arrived")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="results, and the environment, models and runs of the steps")
    parser.add_argument("--dry", action="store_true", help="toy sizes on the CPU; needs no GPU and no pieces")
    parser.add_argument("--seconds", type=float, metavar="N", help="end before N seconds are over; the next call continues")
    parser.add_argument("--again", action="append", default=[], metavar="STEP", help="measure this step again")
    parser.add_argument("--commit", metavar="HASH", help="commit to record where the checkout has no git folder")
    options = parser.parse_args(arguments)
    if options.probe:
        print(json.dumps(probe(), indent=1))
        return
    from steps import STEPS

    # A shell that starts this in the background has SIGINT ignored; a step that is stopped needs it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        ended = work(STEPS, options)
    except PiecesError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(0 if ended else 1)


def work(steps: Sequence[Step], options: argparse.Namespace) -> bool:
    """Do what has no result yet. False: a step that was done in this call did not end well."""
    if options.out is None:
        raise PiecesError("--out FOLDER is missing. Name the folder for the results.")
    if options.pieces is None and not options.dry:
        raise PiecesError("--pieces FOLDER is missing. Name the folder that benchmarks/gpu/pack filled, or try --dry.")
    if unknown := sorted(set(options.again) - {step.name for step in steps}):
        raise PiecesError(f"There is no step {unknown[0]!r}. The steps are: {', '.join(step.name for step in steps)}.")
    began, out = time.monotonic(), options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out):
        end_leftovers(out)
        here = identity(options)
        if not here.get("gpus") and not options.dry:
            raise PiecesError("nvidia-smi finds no GPU on this machine. Use --dry to try the steps on the CPU.")
        index = read_index(options.pieces) if options.pieces else None
        card = here["gpus"][0]["name"] if here.get("gpus") else "no GPU"
        say(f"{card}, commit {here.get('commit', 'unknown')}, results in {out / RESULTS}")
        missing = arrive(index, options.pieces, out)
        python = install(out, missing, index)
        results = Results(out / RESULTS, here)
        place = Place(python, out, options.dry) if python else None
        fine = True
        for number, step in enumerate(steps, 1):
            head = f"[{number}/{len(steps)}] {step.name}"
            if (done := results.final(step.name)) and step.name not in options.again:
                say(f"{head}: {done}, kept")
                continue
            left = None if options.seconds is None else options.seconds - (time.monotonic() - began) - GRACE
            if left is not None and left < LEAST:
                say(f"{head}: no time is left in this call. The same command continues here.")
                break
            if reason := hindrance(step, place, missing):
                say(f"{head}: skipped, {reason}")
                results.skip(step.name, reason)
                continue
            assert place is not None
            say(f"{head}: {step.title}")
            if step.name in options.again:
                shutil.rmtree(out / "steps" / step.name, ignore_errors=True)
            fine &= measure(step, place, results, left)
    say(f"results: {out / RESULTS}. Next: benchmarks/gpu/report {out / RESULTS}")
    return fine


def identity(options: argparse.Namespace) -> dict[str, Any]:
    """What every result says about where it was measured."""
    found = probe()
    named = ("torch", "transformers", "peft", "vllm", "verl", "numpy")
    versions = {name: found["packages"][name] for name in named if name in found["packages"]}
    kept = {key: found[key] for key in ("python", "gpus", "cuda", "cpus") if key in found}
    return {**kept, "versions": versions, "dry": options.dry, **({"commit": head} if (head := commit(ROOT) or options.commit) else {})}


def hindrance(step: Step, place: Place | None, missing: dict[str, list[str]]) -> str | None:
    """Why a step cannot be done now; None: it can."""
    for parcel in ("wheels", *step.parcels):
        if parcel in missing:
            return f"missing pieces: {some(missing[parcel])}"
    if step.module is not None and place is not None:
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({step.module!r}) is None)"
        if subprocess.run([place.python, "-c", code], check=False).returncode:
            return f"{step.module} is not installed"
    return None


def measure(step: Step, place: Place, results: Results, left: float | None) -> bool:
    """Do a step and write what came of it. False: it did not end well."""
    folder = place.out / "steps" / step.name
    folder.mkdir(parents=True, exist_ok=True)
    spent = results.spent(step.name)
    limit = max(60 * step.minutes - spent, 1.0)
    allowed = limit if left is None else min(limit, left)
    began = time.monotonic()
    status, error = "interrupted", None
    try:
        code = run_command([place.python, *fill(step.command, place)], folder, environment(place), allowed)
        cut_by_call = code is None and allowed < limit
        status, error = ("interrupted", None) if cut_by_call else verdict(code, folder / "log.txt")
    finally:
        seconds = time.monotonic() - began
        results.add(step.name, status, seconds=round(seconds, 1), error=error, figures=read_figures(folder))
    say(f"  {status} after {seconds:.0f} s" + (f": {error.strip().splitlines()[-1][:200]}" if error and error.strip() else ""))
    return status in ("ok", "interrupted")


def fill(command: Sequence[str], place: Place) -> Iterator[str]:
    """The words of a command, with the places that it names in braces."""
    for word in command:
        yield word.replace("{gpu}", str(ROOT / "benchmarks" / "gpu")).replace("{parcels}", str(place.parcels))


def environment(place: Place) -> dict[str, str]:
    """Variables of a step: everything that is fetched comes from the parcels."""
    own = {
        "AGL_CACHE": str(place.out / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(place.parcels / "smollm2"),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "COLUMNS": "150",
        "AGL_GPU_DRY": "1" if place.dry else "",
        MARK: str(place.out),
    }
    if place.dry:
        own |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


def end_leftovers(out: Path) -> None:
    """End what a `run` that was killed left running: processes that have its mark in their environment."""
    mark = f"{MARK}={out}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)
                say(f"ended process {path.parent.name}, which an earlier call left running")


def run_command(command: Sequence[str], folder: Path, variables: dict[str, str], seconds: float) -> int | None:
    """Run a command with its output in `log.txt`. Returns its exit code; None when its time was over. Nothing of it is left running."""
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            try:
                return process.wait(timeout=seconds)
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
                os.killpg(process.pid, signal.SIGINT)  # a training run then writes its checkpoint
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=GRACE)
                if isinstance(stop, KeyboardInterrupt):
                    raise
                return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def verdict(code: int | None, log: Path) -> tuple[str, str | None]:
    """What a step ended with, and the end of its log where that was not well."""
    if code == 0:
        return "ok", None
    tail = log.read_bytes()[-TAIL:].decode(errors="replace")
    if code is None:
        return "timeout", tail
    if code == -signal.SIGKILL or "out of memory" in tail.lower() or "OutOfMemoryError" in tail:
        return "out_of_memory", tail
    return "failed", tail


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """What a step has measured so far; a last line that was cut off is left out."""
    figures: list[dict[str, Any]] = []
    path = folder / "figures.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            figures.append(json.loads(line))
    return figures


@contextlib.contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Nothing runs beside anything else. Raises `PiecesError` while another `run` works in the folder."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PiecesError(f"Another benchmarks/gpu/run works in {out}. Wait for it, or stop it.") from None
        yield


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)
