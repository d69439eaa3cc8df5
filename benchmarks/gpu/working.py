"""Runs the measurements of a GPU machine one by one, and saves each result immediately.

    benchmarks/gpu/run --probe                           print the machine as JSON (takes seconds)
    benchmarks/gpu/run --pieces FOLDER --out FOLDER      assemble, install, measure
    benchmarks/gpu/run --dry --out FOLDER                run every step at toy size on the CPU

Each step adds one line to OUT/results.jsonl, with GPU, driver, versions, and commit. Finished steps are skipped, so the same command
continues where the last call stopped. It also continues on another machine if you copy the file there. A step with missing pieces is
skipped by name and tried again in the next call. A step's other output is in OUT/steps/NAME. See benchmarks/gpu/README.md.

Exit code: 0 if nothing is left for this machine, 1 if a step failed or an argument is wrong, 3 if --seconds ran out first.
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
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from installing import ROOT, arrive, install, shortened
from machine import commit, probe
from pieces import PiecesError, read_index
from processes import ALIVE, GRACE, MARK, end_leftovers, killed_after, mark_children, run_command
from results import AGAIN, RESULTS, Results
from steps import STEPS, Step

DONE, UNWELL, MORE = 0, 1, 3
"""Exit codes: nothing is left to do here; a step of this call failed; time ran out, repeat the command."""
SHORTEST = 60.0
"""Minimum seconds of a call: one step, and the time to stop it."""
LEAST = 20.0
"""Minimum seconds left in a call to start a step."""
TAIL = 2000
"""Number of characters of a failed step's log kept in its result."""


@dataclass(frozen=True)
class Place:
    """Paths of a step."""

    python: str
    out: Path
    dry: bool

    @property
    def parcels(self) -> Path:
        return self.out / "parcels"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probe", action="store_true", help="print this machine as JSON and exit")
    parser.add_argument("--pieces", type=Path, metavar="FOLDER", help="folder from benchmarks/gpu/pack, complete or in part")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder for results, environment, models, and runs")
    parser.add_argument("--dry", action="store_true", help="use toy sizes on the CPU; needs no GPU or pieces")
    parser.add_argument("--seconds", type=float, metavar="N", help="stop within N seconds (at least 60); the next call continues")
    parser.add_argument("--again", action="append", default=[], metavar="STEP", help="measure this step again")
    parser.add_argument("--commit", metavar="HASH", help="commit to record if the checkout has no .git folder")
    options = parser.parse_args(arguments)
    if options.probe:
        print(json.dumps(probe(), indent=1))
        return
    # A shell that starts this in the background has SIGINT ignored; a step that is stopped needs it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        raise SystemExit(work(STEPS, options))
    except (PiecesError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print("Interrupted. Run the same command to continue.", file=sys.stderr)
        raise SystemExit(130) from None


def work(steps: Sequence[Step], options: argparse.Namespace) -> int:
    """Run the steps without a result. Return the exit code: `DONE`, `UNWELL`, or `MORE`."""
    if options.out is None:
        raise PiecesError("--out FOLDER is missing. Name the folder for the results.")
    if options.pieces is None and not options.dry:
        raise PiecesError("--pieces FOLDER is missing. Name the folder that benchmarks/gpu/pack filled, or try --dry.")
    if unknown := sorted(set(options.again) - {step.name for step in steps}):
        raise PiecesError(f"There is no step {unknown[0]!r}. The steps are: {', '.join(step.name for step in steps)}.")
    if options.seconds is not None and options.seconds < SHORTEST:
        raise PiecesError(f"--seconds {options.seconds:g} is too short for a step. Use at least {SHORTEST:g}.")
    began, out = time.monotonic(), options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out, options.dry):
        end_leftovers(out)
        mark_children(out)
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
        code = DONE
        for number, step in enumerate(steps, 1):
            head = f"[{number}/{len(steps)}] {step.name}"
            folder = out / "steps" / step.name
            if (seconds := killed_after(folder)) is not None:
                results.add(step.name, "interrupted", seconds=seconds, figures=read_figures(folder))
                (folder / ALIVE).unlink()
            done = results.final(step.name)
            if done and step.name in options.again:
                results.add(step.name, AGAIN)
                shutil.rmtree(folder, ignore_errors=True)
            elif done:
                say(f"{head}: {done}, kept")
                continue
            left = None if options.seconds is None else options.seconds - (time.monotonic() - began) - GRACE
            if left is not None and left < LEAST:
                say(f"{head}: waits for the next call, because --seconds is nearly over. Repeat the command.")
                code = code or MORE
                break
            if reason := hindrance(step, place, missing):
                say(f"{head}: skipped, {reason}")
                results.skip(step.name, reason)
                continue
            assert place is not None
            say(f"{head}: {step.title}")
            status = measure(step, place, results, left)
            if status == "interrupted":
                code = code or MORE
            elif status != "ok":
                code = UNWELL
    if results.lines:
        say(f"results: {out / RESULTS}. Next: benchmarks/gpu/report {out / RESULTS}")
    return code


def identity(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of every result that describe the machine."""
    machine = probe(import_torch=not options.dry)
    packages = ("torch", "transformers", "peft", "vllm", "verl", "numpy")
    versions = {name: machine["packages"][name] for name in packages if name in machine["packages"]}
    kept = {key: machine[key] for key in ("python", "gpus", "cuda", "cpus") if key in machine}
    return {**kept, "versions": versions, "dry": options.dry, **({"commit": head} if (head := commit(ROOT) or options.commit) else {})}


def hindrance(step: Step, place: Place | None, missing: dict[str, list[str]]) -> str | None:
    """Return the reason why a step cannot run now, or None."""
    for parcel in ("wheels", *step.parcels):
        if parcel in missing:
            return f"missing pieces: {shortened(missing[parcel])}"
    if step.module is not None and place is not None:
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({step.module!r}) is None)"
        if subprocess.run([place.python, "-c", code], check=False).returncode:
            return f"{step.module} is not installed"
    return None


def measure(step: Step, place: Place, results: Results, left: float | None) -> str:
    """Run a step, write its result, and return its status."""
    folder = place.out / "steps" / step.name
    folder.mkdir(parents=True, exist_ok=True)
    spent = results.spent(step.name)
    limit = max(60 * step.minutes - spent, 1.0)
    allowed = limit if left is None else min(limit, left)
    began = time.monotonic()
    log = folder / "log.txt"
    before = log.stat().st_size if log.exists() else 0
    status, error = "interrupted", None
    try:
        code = run_command([place.python, *fill(step.command, place)], folder, environment(place), allowed)
        cut_by_call = code is None and allowed < limit
        status, error = ("interrupted", None) if cut_by_call else judge(code, log, before)
    finally:
        seconds = time.monotonic() - began
        results.add(step.name, status, seconds=round(seconds, 1), error=error, figures=read_figures(folder))
    say(f"  {status} after {seconds:.0f} s" + (f": {error.strip().splitlines()[-1][:200]}" if error and error.strip() else ""))
    return status


def fill(command: Sequence[str], place: Place) -> Iterator[str]:
    """Return a command's words with placeholders in braces filled in."""
    for word in command:
        yield word.replace("{gpu}", str(ROOT / "benchmarks" / "gpu")).replace("{parcels}", str(place.parcels))


def environment(place: Place) -> dict[str, str]:
    """Return a step's environment variables. All downloads come from the parcels."""
    own = {
        "AGL_CACHE": str(place.out / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": (place.parcels / "smollm2").as_uri(),  # pip takes spaces for the ends of paths
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "COLUMNS": "150",
        "AGL_GPU_DRY": "1" if place.dry else "",
        "AGL_GPU_OUT": str(place.out),
        MARK: str(place.out),
    }
    if place.dry:
        own |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


def judge(code: int | None, log: Path, before: int) -> tuple[str, str | None]:
    """Return a step's status. For a failure, also return the end of its new log, after `before` bytes."""
    if code == 0:
        return "ok", None
    tail = log.read_bytes()[before:][-TAIL:].decode(errors="replace")
    if code is None:
        return "timeout", tail
    if code == -signal.SIGKILL or "out of memory" in tail.lower() or "OutOfMemoryError" in tail:
        return "out_of_memory", tail
    return "failed", tail


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """Return a step's figures so far, without an incomplete last line."""
    figures: list[dict[str, Any]] = []
    path = folder / "figures.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            figures.append(json.loads(line))
    return figures


@contextlib.contextmanager
def only_one(out: Path, dry: bool) -> Iterator[None]:
    """Take exclusive locks: one `run` per folder, and one measuring `run` per machine. Raises `PiecesError` if another one holds a lock."""
    with contextlib.ExitStack() as stack:
        locks = {f"in {out}": out / ".lock"} | ({} if dry else {"on this machine": Path(tempfile.gettempdir()) / "agl-gpu-run.lock"})
        for where, path in locks.items():
            file = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise PiecesError(f"Another benchmarks/gpu/run works {where}. Wait for it, or stop it.") from None
        yield


def say(text: str) -> None:
    """Print one line of progress."""
    print(text, flush=True)
