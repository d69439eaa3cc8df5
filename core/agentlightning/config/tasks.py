"""Tasks from values and files.

A task's id is a dict's `id`, or the hash of the content, so the same task has the same id in every run. Errors name the file and the line,
or the position.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

from agentlightning.errors import TaskError
from agentlightning.registry.registry import load_object
from agentlightning.types import JSON, Task

WITH_ID = "agl_task"
"""Key of a task with an id of its own, in a file that a run wrote."""


def load_tasks(source: str | Path | Iterable[JSON]) -> list[Task]:
    """Return the tasks of a `.jsonl` or `.json` file, of `module:attribute` (a list, or a function that returns one), or of values.

    A `.jsonl` file has one JSON value on each line, and skips empty lines. A `.json` file is a list of values. A value may be a `Task`.
    Raises `TaskError`, or `ConfigError` for a `module:attribute` that does not exist.
    """
    if isinstance(source, Path) or (isinstance(source, str) and not is_reference(source)):
        return _tasks(_read(Path(source)))
    values: Any = load_object(source) if isinstance(source, str) else source
    values = values() if isinstance(source, str) and callable(values) else values
    if isinstance(values, str | bytes | dict) or not isinstance(values, Iterable):
        name = source if isinstance(source, str) else "tasks"
        raise TaskError(
            f"{name} is a {type(cast(Any, values)).__name__}. Use a list of tasks, or name a file or a function that returns one."
        )
    of_source = f" of {source}" if isinstance(source, str) else ""
    return _tasks((f"task {number}{of_source}", item) for number, item in enumerate(cast("Iterable[Any]", values)))


def is_reference(source: str) -> bool:
    """Whether a source of tasks is `module:attribute` rather than a file."""
    module, colon, attribute = source.partition(":")
    return bool(colon) and all(part.isidentifier() for part in f"{module}.{attribute}".split("."))


def task_id(value: JSON) -> str:
    """Return a dict's `id`, or the `content_id`."""
    identifier = cast("dict[str, Any]", value).get("id") if isinstance(value, dict) else None
    if identifier is not None:
        if isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
            raise TaskError(f"The id is {identifier!r}. Use text or a whole number, or remove the id.")
        return str(identifier)
    return content_id(value)


def task_line(task: Task) -> str:
    """Return a task as a line of a `.jsonl` file: its input, or an object with its id if that is not the input's own."""
    try:
        own = task_id(task.input) != task.id or _as_task(task.input) is not task.input
    except TaskError:
        own = True
    return json.dumps({WITH_ID: {"id": task.id, "input": task.input}} if own else task.input)


def _as_task(value: Any) -> Any:
    """Return the `Task` of an object that `task_line` made; any other value as it is."""
    table = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    parts = table.get(WITH_ID)
    if len(table) > 1 or not isinstance(parts, dict) or set(cast("dict[str, Any]", parts)) != {"id", "input"}:
        return cast("Any", value)
    task = cast("dict[str, Any]", parts)
    return Task(str(task["id"]), task["input"])


def content_id(value: JSON) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _tasks(values: Iterable[tuple[str, Any]]) -> list[Task]:
    """Check (where, value) pairs, and make them tasks."""
    tasks: list[Task] = []
    places: dict[str, str] = {}
    for where, value in values:
        try:
            _check_json(value.input if isinstance(value, Task) else value)
            task = value if isinstance(value, Task) else Task(task_id(value), value)
        except TaskError as error:
            raise TaskError(f"{where}: {error}") from error
        if task.id in places:
            has_id = isinstance(value, Task) or (isinstance(value, dict) and "id" in value)
            same = "have the same id" if has_id else "are the same task"
            raise TaskError(f"{places[task.id]} and {where} {same} ({task.id!r}). Remove one, or give each its own id.")
        places[task.id] = where
        tasks.append(task)
    return tasks


def _check_json(value: Any, at: str = "") -> None:
    """Raise `TaskError` unless JSON can hold the value and give it back equal."""
    here = f"at {at}: " if at else ""
    if isinstance(value, list | tuple):
        for number, item in enumerate(cast("list[Any]", value)):
            _check_json(item, f"{at}[{number}]")
    elif isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            if not isinstance(key, str):
                raise TaskError(f"{here}The key {key!r} is not text. Use an object as in JSON.")
            _check_json(item, f"{at}.{key}" if at else key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise TaskError(f"{here}{value} is not a JSON number. Use a finite one.")
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise TaskError(f"{here}{value!r:.80} is of type {type(value).__name__}. Use a value that JSON can hold.")


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (where, value) of each task in a file."""
    if path.suffix not in (".jsonl", ".json"):
        raise TaskError(f"{path}: The name ends with {path.suffix or 'nothing'!r}. Use .jsonl (a value on each line) or .json (a list).")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path}: The tasks file cannot be read: {error.strerror or error}. Check its path.") from error
    empty = True
    for where, value in _lines(path, data) if path.suffix == ".jsonl" else _items(path, data):
        empty = False
        yield where, _as_task(value)
    if empty:
        raise TaskError(f"{path}: The file has no tasks. Add at least one.")


def _lines(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):  # an editor may have put a byte-order mark
        if line.strip():
            yield f"{path}, line {number}", _parse(line, f"{path}, line {number}")


def _items(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    value: Any = _parse(data.removeprefix(b"\xef\xbb\xbf"), str(path)) if data.strip() else []
    if not isinstance(value, list):
        raise TaskError(f"{path}: The file holds a {type(value).__name__}. Use a list of tasks, or a .jsonl file with one on each line.")
    for number, item in enumerate(cast("list[Any]", value)):
        yield f"{path}, item {number}", item


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise TaskError(f"{where}: The file is not UTF-8 at byte {error.start + 1}. Save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        shown = text.decode().strip()
        shown = shown if len(shown) <= 60 else shown[:60] + "…"
        raise TaskError(f"{where}: This is not JSON: {error.msg} ({line}column {error.colno}) in {shown!r}. Correct it.") from error
    except RecursionError as error:
        raise TaskError(f"{where}: The value is nested too deeply. Use fewer levels.") from error
    except ValueError as error:
        raise TaskError(f"{where}: This is not JSON: {error}. Correct it.") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
