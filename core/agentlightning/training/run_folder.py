"""A run folder: everything that one run leaves behind, and all that a resumed run needs.

    runs/20261122-133000-demo/
        config.toml     the complete config, as the run used it
        metrics.jsonl   one line for each step (metrics.py)
        result.json     the result
        failure.json    why the run failed; absent otherwise
        evaluation.json what the evaluations before training depend on, so that other runs can reuse them (evaluation_cache.py)
        reward.png      the reward curve (chart.py)
        store.db        every rollout, completion, span and reward
        state.json      the state of the run
        tracking.json   the id under which trackers know the run
        trackers.json   the last step that each tracker took (trackers.py)
        batches/step-00012.json      the contribution of each rollout to that step
        batches/step-00012.npz       the trainer's log-probabilities of its tokens (step_logprobs.py)
        checkpoints/step-00012/      loads with `from_pretrained`; its own `run_state.json` makes it resumable. Each of several policies
                                     has a folder in it, with a LoRA adapter
        weights/version-00012/       during the run: weights on their way to an engine in another process

A file is complete or absent: it is written under another name, flushed to the disk and renamed. One process writes a run
(`lock`); the operating system drops the lock of a process that died. A step's number is the count of finished steps, from 1;
step 0 is the state before training.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agentlightning.config.run_folders import STATE, STORE, began, latest_training, run_folders
from agentlightning.config.store_address import folder_store
from agentlightning.errors import LightningError, RunError, UnknownRun
from agentlightning.files import disk_errors, flush, write_file
from agentlightning.telemetry.logs import hide_secrets
from agentlightning.training.run_state import BaseEvaluation, Learned, RunState
from agentlightning.types import JSON, new_id

_STEP = re.compile(r"step-(\d+)")
_STATE = "run_state.json"
FAILURE_LIMIT = 300
"""Characters of the reason that a failed run keeps."""


@dataclass(frozen=True, slots=True)
class _Inside:
    """The path of a name inside a run folder."""

    name: str

    def __get__(self, folder: RunFolder, owner: type[RunFolder]) -> Path:
        return folder.path / self.name


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of a run, and methods that read and write them. Every method raises `RunError` if the disk refuses."""

    path: Path
    config = _Inside("config.toml")
    result = _Inside("result.json")
    failure = _Inside("failure.json")
    evaluation = _Inside("evaluation.json")
    chart = _Inside("reward.png")
    store = _Inside(STORE)
    state = _Inside(STATE)
    tracking = _Inside("tracking.json")
    batches = _Inside("batches")
    checkpoints = _Inside("checkpoints")
    weights = _Inside("weights")

    @classmethod
    def create(cls, root: Path | str, name: str) -> RunFolder:
        """Make `root/<time>-<name>`. Two runs that start in one second get different folders.

        A new `root` ignores its own files, so that neither git nor a tool that ships the code (Ray) takes checkpoints along.
        """
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}"
        with disk_errors("make the run folder", Path(root) / stem):
            if not Path(root).exists():
                Path(root).mkdir(parents=True, exist_ok=True)
                (Path(root) / ".gitignore").write_text("*\n")
            path, number = Path(root) / stem, 1
            while True:
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    number += 1
                    path = Path(root) / f"{stem}-{number}"
            folder = cls(path.resolve())
            folder.checkpoints.mkdir()
            folder.batches.mkdir()
            return folder

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Return an existing run by its folder, or by the folder's name under `runs/`."""
        for folder in (Path(path), Path("runs") / path):
            if folder.is_dir():
                if not any((folder / name).exists() for name in ("config.toml", STORE, STATE)):
                    raise UnknownRun(
                        f"{folder} is not a run folder: it has no config.toml, store.db or state.json. Name a folder runs/<time>-<name>/."
                    )
                return cls(folder.resolve())
        latest = [run.path.name for run in cls.all(Path("runs"))][-3:]
        hint = f"The latest runs are: {', '.join(latest)}." if latest else "The folder ./runs has no run."
        raise UnknownRun(f"There is no run {str(path)!r}. {hint}")

    @classmethod
    def all(cls, root: Path | str) -> list[RunFolder]:
        """Return the runs under a folder, oldest first, also those that somebody renamed."""
        return [cls(path) for path in run_folders(root)]

    @classmethod
    def below(cls, root: Path | str) -> list[RunFolder]:
        """Return the runs under a folder and those of its benchmarks, oldest first."""
        inner = [run for folder in Path(root).glob("*/") for run in cls.all(folder)]
        return sorted([*cls.all(root), *inner], key=lambda run: began(run.path))

    @classmethod
    def latest(cls, root: Path | str = "runs") -> RunFolder:
        """Return the newest run that has begun to record. A start that failed before that is no run yet."""
        runs = [run for run in cls.all(root) if run.begun]
        if not runs:
            raise UnknownRun(f"There is no run under {root}. Start one with `agl train CONFIG.toml` or `agl demo`.")
        return runs[-1]

    @classmethod
    def latest_training(cls, root: Path | str = "runs") -> RunFolder:
        """Return the newest training run. The folders of `agl rollout` are none."""
        path = latest_training(root)
        if path is None:
            raise UnknownRun(f"There is no training run under {root}. Start one with `agl train CONFIG.toml` or `agl demo`.")
        return cls(path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def store_address(self) -> str:
        """The address for `open_store`: the setting `store` of the run, or the file in this folder."""
        return folder_store(self.path)

    @property
    def begun(self) -> bool:
        """Whether the run has begun to record: its config is written when everything that it needs is open."""
        return self.config.is_file() or self.state.is_file()

    @property
    def has_store(self) -> bool:
        """Whether anything was recorded, as far as this folder knows."""
        return self.store.is_file() or not self.store_address.endswith(str(self.store))

    # --- one writer ---

    @contextmanager
    def lock(self) -> Generator[None]:
        """Be the one process that writes this run, within the block. Raises `RunError` with the name of another process that does."""
        path = self.path / ".lock"
        with disk_errors("lock the run", path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with disk_errors("lock the run", path):
                try:
                    _lock_soon(handle)
                except BlockingIOError:
                    owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
                    raise RunError(f"Run {self.name} is in use by {owner}. Wait for it to end, or stop it first.") from None
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                for folder in (self.path, self.checkpoints, self.batches):
                    for part in folder.glob(".part-*"):  # of a process that died while writing
                        shutil.rmtree(part) if part.is_dir() else part.unlink()
            yield
        finally:
            os.close(handle)  # releases the lock; the file stays, because removing it would let two processes lock two files

    @property
    def in_use(self) -> bool:
        """Whether a process writes this run."""
        import fcntl  # POSIX; imported here so that reading a run works everywhere

        try:
            handle = os.open(self.path / ".lock", os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(handle)

    # --- values ---

    def write_config(self, text: str) -> None:
        write_file(self.config, text.encode())

    def write_result(self, result: Mapping[str, JSON]) -> None:
        write_file(self.result, _pretty(result))

    def read_result(self) -> dict[str, JSON]:
        return _read(self.result, dict[str, Any])

    def write_failure(self, error: Exception) -> None:
        """Keep why the run failed: the first line of the error, without secrets."""
        text = str(error) if isinstance(error, LightningError) else f"{type(error).__name__}: {error}"
        line = hide_secrets(next(iter(text.strip().splitlines()), type(error).__name__))
        reason = line if len(line) <= FAILURE_LIMIT else line[:FAILURE_LIMIT] + "…"
        write_file(self.failure, _pretty({"reason": reason}))

    def failed(self) -> str | None:
        """Return why the run failed; None: it did not."""
        if not self.failure.is_file():
            return None
        try:
            return _read(self.failure, dict[str, str]).get("reason", "")
        except RunError as error:
            return str(error)

    def write_evaluations(self, evaluations: Sequence[BaseEvaluation]) -> None:
        write_file(self.evaluation, _pretty(evaluations))

    def read_evaluations(self) -> list[BaseEvaluation]:
        """Return the evaluations that other runs may reuse; empty if there is none."""
        return _read(self.evaluation, list[BaseEvaluation]) if self.evaluation.exists() else []

    def write_state(self, state: RunState) -> None:
        write_file(self.state, _pretty(state))

    def read_state(self) -> RunState:
        return _read(self.state, RunState)

    def tracking_id(self) -> str:
        """Return the id under which trackers know the run. The first call makes it."""
        if not self.tracking.exists():
            write_file(self.tracking, _pretty({"id": new_id()}))
        return _read(self.tracking, dict[str, str])["id"]

    def write_batch(self, step: int, learned: Mapping[str, Learned]) -> None:
        """Keep the contribution of each rollout (by id) to a step, for `agl show`."""
        write_file(self._batch(step), msgspec.json.encode(learned))

    def read_batch(self, step: int) -> dict[str, Learned]:
        """Return the contributions that `write_batch` kept; empty for a step that was not trained yet."""
        path = self._batch(step)
        return _read(path, dict[str, Learned]) if path.exists() else {}

    def read_batches(self, last: int | None = None) -> dict[str, Learned]:
        """Return the contributions by rollout id, over all steps or up to `last`."""
        learned: dict[str, Learned] = {}
        for step in _steps(self.batches):
            if last is None or step <= last:
                learned |= self.read_batch(step)
        return learned

    def steps_of(self) -> dict[str, int]:
        """Return the step that trained on each rollout, by the rollout's id."""
        return {rollout_id: step for step in _steps(self.batches) for rollout_id in self.read_batch(step)}

    def logprobs(self, step: int) -> Path:
        """The file of a step's log-probabilities; it is absent if the trainer told none."""
        return self.batches / f"step-{step:05d}.npz"

    def _batch(self, step: int) -> Path:
        return self.batches / f"step-{step:05d}.json"

    # --- checkpoints ---

    def steps(self) -> list[int]:
        """Return the steps with a complete checkpoint, in order."""
        return [step for step in _steps(self.checkpoints) if (self.checkpoint(step) / _STATE).is_file()]

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:05d}"

    @contextmanager
    def new_checkpoint(self, state: RunState) -> Generator[Path]:
        """Give the trainer a folder to save into. Leaving the block makes it the checkpoint of `state.step`, and `state` the run's state.
        An error inside changes nothing. The folder lies in a temporary one, so `lock` also removes what a killed trainer left beside it."""
        final, part = self.checkpoint(state.step), self.checkpoints / f".part-{state.step:05d}-{os.getpid()}"
        try:
            with disk_errors("write checkpoint", final):
                self.checkpoints.mkdir(exist_ok=True)
                shutil.rmtree(part, ignore_errors=True)
                inner = part / final.name
                inner.mkdir(parents=True)
                yield inner
                write_file(inner / _STATE, _pretty(state))
                for file in inner.rglob("*"):
                    if file.is_file():
                        flush(file)
                if final.exists():  # of a run that was cut back before this step
                    _discard(final)
                inner.rename(final)
                flush(self.checkpoints)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self.write_state(state)

    def resume_point(self) -> tuple[Path, RunState]:
        """Return the newest complete checkpoint and its state."""
        steps = self.steps()
        if not steps:
            raise RunError(f"Run {self.name} has no complete checkpoint to resume from. Start it again with {self.config}.")
        path = self.checkpoint(steps[-1])
        return path, _read(path / _STATE, RunState)

    def cut_back(self, step: int) -> None:
        """Remove batches and checkpoints after a step. A resumed run makes them again."""
        with disk_errors("clean the run folder", self.path):
            for later in [number for number in _steps(self.checkpoints) if number > step]:
                _discard(self.checkpoint(later))
            for later in [number for number in _steps(self.batches) if number > step]:
                self._batch(later).unlink(missing_ok=True)
                self.logprobs(later).unlink(missing_ok=True)

    def prune(self, *, best: int | None = None, every: int | None = None, last: int = 2) -> list[int]:
        """Remove the checkpoints that `kept_steps` does not keep, and return their steps."""
        steps = self.steps()
        gone = sorted(set(steps) - kept_steps(steps, best=best, every=every, last=last))
        with disk_errors("remove old checkpoints in", self.checkpoints):
            for step in gone:
                _discard(self.checkpoint(step))
        return gone


def _lock_soon(handle: int) -> None:
    """Lock a file for this process. `in_use` of another process may hold it for a moment."""
    import fcntl

    for wait in (0.1, None):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait is None:
                raise
            time.sleep(wait)


def kept_steps(steps: Sequence[int], *, best: int | None = None, every: int | None = None, last: int = 2) -> set[int]:
    """Return the steps whose checkpoints stay: the last ones, the best, and every Nth."""
    keep = set(sorted(steps)[-last:])
    keep |= {step for step in steps if step == best or (every and step % every == 0)}
    return keep


def _read(path: Path, kind: Any) -> Any:
    with disk_errors("read", path):
        data = path.read_bytes()
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise RunError(f"{path} is damaged: {error}. Restore the file, or start the run again.") from error


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _steps(folder: Path) -> list[int]:
    names: Iterable[str] = os.listdir(folder) if folder.is_dir() else ()
    return sorted({int(match[1]) for name in names if (match := _STEP.match(name))})


def _discard(folder: Path) -> None:
    """Remove a folder. It gets another name first, so a half-removed one never looks complete."""
    aside = folder.with_name(f".part-{folder.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)
