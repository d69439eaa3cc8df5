"""A run folder: everything that one run leaves behind, and all that is needed to go on.

    runs/20261122-133000-demo/
        config.toml     the whole configuration, as it was used
        metrics.jsonl   one line for each step (tracking.py)
        result.json     what came of it
        reward.png      the curve (chart.py)
        store.db        every rollout, completion, span and reward
        state.json      where the run stands
        batches/step-00012.json      what each rollout contributed to that step
        checkpoints/step-00012/      loads with `from_pretrained`; its own `run_state.json` makes it resumable
        weights/version-00012/       while it runs: what the trainer hands to an engine of another process

A file is there whole or not at all: it is written beside its final place, flushed to the disk and renamed. One process writes a
run (`lock`); the system drops the lock of a process that died. A step is named by how many steps were finished with it, from 1;
step 0 is the state before training.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agentlightning.errors import RunError
from agentlightning.types import JSON

_STEP = re.compile(r"step-(\d+)")
_STATE = "run_state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands."""

    step: int = 0
    """Steps finished."""
    sampler: JSON = None
    """The sampler's own state: its position in the tasks."""
    best: float | None = None
    """Best eval reward so far; None: never measured."""
    best_step: int | None = None
    """The step that reached it."""
    started: float = 0.0
    """When the run began, seconds since the epoch."""
    seconds: float = 0.0
    """Time spent in it, over all resumptions."""
    finished: bool = False
    extra: dict[str, JSON] = field(default_factory=dict[str, JSON])
    """What the algorithm keeps besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What one rollout contributed to a training step. `trained` and `left_out` together are all tokens of its winning attempt."""

    returns: tuple[float | None, ...] = ()
    """(transitions,) what credit assigned; None: no return."""
    advantages: tuple[float | None, ...] = ()
    """(transitions,) None: the transition has none, because it was not trained."""
    trained: int = 0
    """Sampled tokens that were trained."""
    left_out: dict[str, int] = field(default_factory=dict[str, int])
    """Sampled tokens that were not, by reason."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run, and the ways to write them. Every method raises `RunError` when the disk refuses."""

    path: Path

    @classmethod
    def create(cls, root: Path | str, name: str) -> RunFolder:
        """Make `root/<time>-<name>`. Two runs of one second get different folders."""
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}"
        with disk_errors("make the run folder", Path(root) / stem):
            Path(root).mkdir(parents=True, exist_ok=True)
            for number in range(1, 1000):
                path = Path(root) / (stem if number == 1 else f"{stem}-{number}")
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                folder = cls(path.resolve())
                folder.checkpoints.mkdir()
                folder.batches.mkdir()
                return folder
        raise RunError(f"cannot make a run folder {stem!r} under {root}: a thousand of them exist")

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """A run that exists: its folder, or the folder's name under `runs/`."""
        for each in (Path(path), Path("runs") / path):
            if each.is_dir():
                if not any((each / name).exists() for name in ("config.toml", "store.db", "state.json")):
                    raise RunError(
                        f"{each} is no run folder: it has no config.toml, store.db or state.json; runs lie in runs/<time>-<name>/"
                    )
                return cls(each.resolve())
        known = [run.path.name for run in cls.all(Path("runs"))][-3:]
        hint = f"the latest in runs/: {', '.join(known)}" if known else "there is no run in ./runs"
        raise RunError(f"there is no run {str(path)!r}; {hint}")

    @classmethod
    def all(cls, root: Path | str) -> list[RunFolder]:
        """The runs under a folder, oldest first."""
        if not Path(root).is_dir():
            return []
        paths = sorted(each for each in Path(root).iterdir() if re.match(r"\d{8}-\d{6}-", each.name) and each.is_dir())
        return [cls(path.resolve()) for path in paths]

    @classmethod
    def latest(cls, root: Path | str = "runs") -> RunFolder:
        """The run that was started last."""
        runs = cls.all(root)
        if not runs:
            raise RunError(f"there is no run under {root}; `agl train CONFIG.toml` makes one, and so does `agl demo`")
        return runs[-1]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def chart(self) -> Path:
        return self.path / "reward.png"

    @property
    def store(self) -> Path:
        return self.path / "store.db"

    @property
    def store_address(self) -> str:
        """What `register_stores` opens."""
        return f"sqlite:{self.store}"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.path / "weights"

    @property
    def batches(self) -> Path:
        return self.path / "batches"

    # --- one writer ---

    @contextmanager
    def lock(self) -> Generator[None]:
        """Be the one process that writes this run, for the block. `RunError` names the process that has it already."""
        import fcntl  # POSIX; imported here so that reading a run works everywhere

        path = self.path / ".lock"
        with disk_errors("lock the run", path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with disk_errors("lock the run", path):
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
                    raise RunError(f"run {self.name} is being written by {owner}; wait for it, or stop it first") from None
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                for folder in (self.path, self.checkpoints, self.batches):
                    for left in folder.glob(".part-*"):  # of a process that died while writing
                        shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield
        finally:
            os.close(handle)  # releases the lock; the file stays, since removing it would let two processes lock two files

    # --- values ---

    def write_config(self, text: str) -> None:
        write_file(self.config, text.encode())

    def write_result(self, result: Mapping[str, JSON]) -> None:
        write_file(self.result, _pretty(result))

    def read_result(self) -> dict[str, JSON]:
        return _read(self.result, dict[str, Any])

    def write_state(self, state: RunState) -> None:
        write_file(self.state, _pretty(state))

    def read_state(self) -> RunState:
        return _read(self.state, RunState)

    def write_batch(self, step: int, learned: Mapping[str, Learned]) -> None:
        """Keep what each rollout (by id) contributed to a step, for `agl show`."""
        write_file(self.batches / f"step-{step:05d}.json", msgspec.json.encode(learned))

    def read_batch(self, step: int) -> dict[str, Learned]:
        """What `write_batch` kept; empty when the step trained nothing yet."""
        path = self.batches / f"step-{step:05d}.json"
        return _read(path, dict[str, Learned]) if path.exists() else {}

    def read_batches(self, last: int | None = None) -> dict[str, Learned]:
        """By rollout id, over all steps, or up to the last one that counts."""
        learned: dict[str, Learned] = {}
        for step in _steps(self.batches):
            if last is None or step <= last:
                learned |= self.read_batch(step)
        return learned

    def steps_of(self) -> dict[str, int]:
        """The step that took a rollout, by its id."""
        return {rollout_id: step for step in _steps(self.batches) for rollout_id in self.read_batch(step)}

    # --- checkpoints ---

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, in order."""
        return [step for step in _steps(self.checkpoints) if (self.checkpoint(step) / _STATE).is_file()]

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:05d}"

    @contextmanager
    def new_checkpoint(self, state: RunState) -> Generator[Path]:
        """A folder for the trainer to save into. Leaving the block makes it the checkpoint of `state.step`, and `state` the run's;
        an error inside leaves everything as it was."""
        final, part = self.checkpoint(state.step), self.checkpoints / f".part-{state.step:05d}-{os.getpid()}"
        try:
            with disk_errors("write checkpoint", final):
                self.checkpoints.mkdir(exist_ok=True)
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                yield part
                write_file(part / _STATE, _pretty(state))
                for each in part.rglob("*"):
                    if each.is_file():
                        _sync(each)
                if final.exists():  # of a run that was cut back before this step
                    _discard(final)
                part.rename(final)
                _sync(self.checkpoints)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self.write_state(state)

    def resume_point(self) -> tuple[Path, RunState]:
        """The newest complete checkpoint and the state that belongs to it."""
        steps = self.steps()
        if not steps:
            raise RunError(f"run {self.name} has no complete checkpoint to resume from; start it anew with its {self.config}")
        path = self.checkpoint(steps[-1])
        return path, _read(path / _STATE, RunState)

    def cut_back(self, step: int) -> None:
        """Remove batches and checkpoints after a step: a resumed run makes them again."""
        with disk_errors("clean the run folder", self.path):
            for each in _steps(self.checkpoints):
                if each > step:
                    _discard(self.checkpoint(each))
            for each in _steps(self.batches):
                if each > step:
                    (self.batches / f"step-{each:05d}.json").unlink()

    def prune(self, *, best: int | None = None, every: int | None = None, last: int = 2) -> list[int]:
        """Remove the checkpoints that `kept` does not keep; returns their steps."""
        steps = self.steps()
        gone = sorted(set(steps) - kept(steps, best=best, every=every, last=last))
        with disk_errors("remove old checkpoints in", self.checkpoints):
            for step in gone:
                _discard(self.checkpoint(step))
        return gone


def kept(steps: Sequence[int], *, best: int | None = None, every: int | None = None, last: int = 2) -> set[int]:
    """Which checkpoints stay: the last ones, the best, and every Nth."""
    keep = set(sorted(steps)[-last:])
    keep |= {step for step in steps if step == best or (every and step % every == 0)}
    return keep


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    part = path.with_name(f".part-{path.name}-{os.getpid()}")
    with disk_errors("write", path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync(path.parent)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def disk_errors(what: str, path: Path) -> Generator[None]:
    """Turn what the system says about a file into a `RunError` that names the cause and the way out."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot {what} {path}: {_cause(error, path)}") from error


def _cause(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        existing = next((each for each in (path, *path.parents) if each.exists()), Path("/"))
        free = shutil.disk_usage(existing).free / 2**20
        return f"the disk is full ({free:.0f} MiB free); free some space, then go on with `agl train CONFIG.toml --resume RUN`"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied; make the folder writable for this user, or choose another one for the run"
    if error.errno == errno.EROFS:
        return "the file system is read-only; choose another folder for the run"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "a file stands where a folder is needed; move it away, or choose another folder for the run"
    if error.errno == errno.ENOENT:
        return "it, or a folder above it, does not exist and cannot be made; check the name, or choose another folder"
    return error.strerror or str(error)


def _read(path: Path, kind: Any) -> Any:
    with disk_errors("read", path):
        data = path.read_bytes()
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise RunError(f"{path} cannot be read as Agent Lightning wrote it: {error}") from error


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _steps(folder: Path) -> list[int]:
    names: Iterable[str] = os.listdir(folder) if folder.is_dir() else ()
    return sorted(int(match[1]) for name in names if (match := _STEP.match(name)))


def _discard(folder: Path) -> None:
    """Remove a folder so that a half-removed one is never taken for a whole one."""
    aside = folder.with_name(f".part-{folder.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
