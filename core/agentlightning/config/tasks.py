"""Tasks from values and files, and the order in which a run takes them.

A task's id is a dict's `id`, or the hash of the content, so the same task has the same id in every run. Errors name the file, the line or
the position, and what is wrong there.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np

from agentlightning.errors import ConfigError, TaskError
from agentlightning.registry.registry import load_object
from agentlightning.types import JSON, Task


def load_tasks(source: str | Path | Iterable[JSON]) -> list[Task]:
    """Tasks from a `.jsonl` or `.json` file, from `module:attribute` (a list, or a function that makes one), or from values.

    A `.jsonl` file holds one JSON value on each line (empty lines are passed over), a `.json` file one list of them. A value may be a
    `Task` already. Raises `TaskError`, or `ConfigError` for a `module:attribute` that cannot be found.
    """
    if isinstance(source, Path) or (isinstance(source, str) and not is_reference(source)):
        return _tasks(_read(Path(source)))
    values: Any = load_object(source) if isinstance(source, str) else source
    values = values() if isinstance(source, str) and callable(values) else values
    if isinstance(values, str | bytes | dict) or not isinstance(values, Iterable):
        name = source if isinstance(source, str) else "tasks"
        raise TaskError(f"{name} is a {_kind(values)}. Use a list of tasks, or name a file or a function that returns one.")
    of_source = f" of {source}" if isinstance(source, str) else ""
    return _tasks((f"task {number}{of_source}", item) for number, item in enumerate(cast("Iterable[Any]", values)))


def is_reference(source: str) -> bool:
    """Whether tasks are named as `module:attribute` rather than by a file."""
    module, colon, attribute = source.partition(":")
    return bool(colon) and all(part.isidentifier() for part in f"{module}.{attribute}".split("."))


def task_id(value: JSON) -> str:
    """A dict's `id`, or the first 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
    identifier = cast("dict[str, Any]", value).get("id") if isinstance(value, dict) else None
    if identifier is not None:
        if isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
            raise TaskError(f"its id is {identifier!r}. Use text or a whole number, or remove the id.")
        return str(identifier)
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _tasks(values: Iterable[tuple[str, Any]]) -> list[Task]:
    """Tasks of (where, value) pairs, each checked."""
    tasks: list[Task] = []
    places: dict[str, str] = {}
    for where, value in values:
        try:
            task = value if isinstance(value, Task) else Task(task_id(_checked(value)), value)
            if isinstance(value, Task):
                _checked(value.input)
        except TaskError as error:
            raise TaskError(f"{where}: {error}") from error
        if task.id in places:
            same = "have the same id" if isinstance(value, Task) or "id" in _keys(value) else "are the same task"
            raise TaskError(
                f"{places[task.id]} and {where} {same} ({task.id!r}); ids must be unique, so remove one or give each its own id"
            )
        places[task.id] = where
        tasks.append(task)
    return tasks


def _keys(value: Any) -> set[str]:
    return set(cast("dict[str, Any]", value)) if isinstance(value, dict) else set()


def _kind(value: Any) -> str:
    return str(type(value).__name__)


def _checked(value: Any, at: str = "") -> Any:
    """The value, if JSON can hold it and give it back the same."""
    here = f"at {at}: " if at else ""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise TaskError(f"{here}{value} is no JSON number; expected a finite one")
    if isinstance(value, list | tuple):
        for number, item in enumerate(cast("Sequence[Any]", value)):
            _checked(item, f"{at}[{number}]")
        return cast(Any, value)
    if isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            if not isinstance(key, str):
                raise TaskError(f"{here}the key {key!r} is no text; expected an object as JSON has it")
            _checked(item, f"{at}.{key}" if at else key)
        return cast(Any, value)
    raise TaskError(f"{here}{value!r:.80} is of type {type(value).__name__}; expected a value that JSON can hold")


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, value) of each task in a file."""
    if path.suffix not in (".jsonl", ".json"):
        raise TaskError(
            f"{path}: the file's name ends with {path.suffix or 'nothing'!r}; expected .jsonl (a value a line) or .json (a list)"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path}: the tasks file cannot be read: {error.strerror or error}") from error
    empty = True
    for where, value in _lines(path, data) if path.suffix == ".jsonl" else _items(path, data):
        empty = False
        yield where, value
    if empty:
        raise TaskError(f"{path}: the file has no tasks. Add at least one.")


def _lines(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):  # an editor may have put a byte-order mark
        if line.strip():
            yield f"{path}, line {number}", _parse(line, f"{path}, line {number}")


def _items(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    value: Any = _parse(data.removeprefix(b"\xef\xbb\xbf"), str(path)) if data.strip() else []
    if not isinstance(value, list):
        raise TaskError(f"{path}: the file holds a {_kind(value)}; expected a list of tasks (or a .jsonl file, one on each line)")
    for number, item in enumerate(cast("list[Any]", value)):
        yield f"{path}, item {number}", item


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise TaskError(f"{where}: not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        shown = text.decode().strip()
        shown = shown if len(shown) <= 60 else shown[:60] + "…"
        raise TaskError(f"{where}: not JSON: {error.msg} ({line}column {error.colno}): {shown}") from error
    except RecursionError as error:
        raise TaskError(f"{where}: nested too deeply") from error
    except ValueError as error:
        raise TaskError(f"{where}: not JSON: {error}") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


class Sampler(ABC):
    """Base of every sampler, an order of tasks."""

    def __init__(self, tasks: Sequence[Task], seed: int = 0) -> None:
        """Raises `TaskError` if there are no tasks."""
        self.tasks, self.seed = not_empty(tasks), seed

    @abstractmethod
    def next(self, count: int) -> list[Task]:
        """Return the next tasks to start: those of a step together, and one by one when groups are resampled."""

    @abstractmethod
    def state(self) -> dict[str, JSON]:
        """Return the position, as JSON."""

    @abstractmethod
    def restore(self, state: dict[str, JSON]) -> None:
        """Continue from a position. Raises `ConfigError` if the tasks differ."""

    def learn(self, task_id: str, rewards: Sequence[float]) -> None:
        """Use the rewards of a group to choose later tasks. By default they change nothing."""


class InOrder(Sampler):
    """As they were given, again and again."""

    def __init__(self, tasks: Sequence[Task], seed: int = 0) -> None:
        super().__init__(tasks, seed)
        self._position = 0

    def next(self, count: int) -> list[Task]:
        check_count(count)
        chosen = [self.tasks[(self._position + k) % len(self.tasks)] for k in range(count)]
        self._position = (self._position + count) % len(self.tasks)
        return chosen

    def state(self) -> dict[str, JSON]:
        return {"tasks": fingerprint(self.tasks), "position": self._position}

    def restore(self, state: dict[str, JSON]) -> None:
        check_same(self.tasks, state)
        self._position = int(state["position"])


class Epochs(Sampler):
    """A new random order each epoch, without replacement.

    A step may take the last tasks of one epoch and the first of the next; those are then others, as long as there are enough tasks.
    """

    def __init__(self, tasks: Sequence[Task], seed: int = 0) -> None:
        super().__init__(tasks, seed)
        self._start(0, [], 0)

    def _start(self, epoch: int, held: list[int], need: int) -> None:
        """Begin an epoch in which the first `need` tasks are none of `held` (as far as there are others)."""
        self._epoch, self._held, self._need, self._position = epoch, held, need, 0
        order: list[int] = np.random.default_rng([self.seed % 2**64, epoch]).permutation(len(self.tasks)).tolist()
        first = [k for k in order if k not in held][:need]
        taken = set(first)
        self._order = first + [k for k in order if k not in taken]

    def next(self, count: int) -> list[Task]:
        check_count(count)
        chosen: list[int] = []
        while len(chosen) < count:
            if self._position == len(self._order):
                self._start(self._epoch + 1, sorted(set(chosen)), count - len(chosen))
            part = self._order[self._position : self._position + count - len(chosen)]
            self._position += len(part)
            chosen += part
        return [self.tasks[k] for k in chosen]

    def state(self) -> dict[str, JSON]:
        return {
            "tasks": fingerprint(self.tasks),
            "seed": self.seed,
            "epoch": self._epoch,
            "position": self._position,
            "held": self._held,
            "need": self._need,
        }

    def restore(self, state: dict[str, JSON]) -> None:
        check_same(self.tasks, state)
        self.seed = int(state["seed"])
        self._start(int(state["epoch"]), list(state["held"]), int(state["need"]))
        self._position = int(state["position"])


def not_empty(tasks: Sequence[Task]) -> list[Task]:
    """The tasks; `TaskError` where there are none."""
    if not tasks:
        raise TaskError("there are no tasks; expected at least one")
    return list(tasks)


def check_count(count: int) -> None:
    """`ConfigError` for a step of no tasks."""
    if count < 1:
        raise ConfigError(f"tasks_per_step is {count}; it must be at least 1")


def fingerprint(tasks: Sequence[Task]) -> str:
    """By which a sampler knows its tasks again."""
    return hashlib.sha256(json.dumps([task.id for task in tasks]).encode()).hexdigest()[:16]


def check_same(tasks: Sequence[Task], state: dict[str, JSON]) -> None:
    """`ConfigError` where a state is that of other tasks."""
    if state.get("tasks") != fingerprint(tasks):
        raise ConfigError("the tasks, or their order, are not those that this run was started with; resume with the same tasks file")
