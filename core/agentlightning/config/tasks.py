"""Tasks from values, files and data sets.

A task's id is a dict's `id`, or the hash of the content, so the same task has the same id in every run. Errors name the file and the line,
or the position.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from agentlightning.config.task_files import HUB, read_tasks
from agentlightning.errors import LightningError, TaskError
from agentlightning.registry.registry import load_object
from agentlightning.types import JSON, Task

WITH_ID = "agl_task"
"""Key of a task with an id of its own, in a file that a run wrote."""
DOUBLES = 20
"""Pairs of equal tasks that an error lists."""


def load_tasks(source: str | Path | Iterable[JSON], columns: Mapping[str, str] | None = None) -> list[Task]:
    """Return the tasks of a file, of a data set (`hf:NAME:CONFIG:SPLIT`), of `module:attribute` (a list, or a function that returns one),
    or of values.

    A `.jsonl` or `.ndjson` file has one JSON value on each line, and skips empty lines. A `.json` file is a list of values. A row of a
    `.csv`, `.tsv` or `.parquet` file, or of a data set, is an object. A value may be a `Task`. `columns` renames the keys of objects, as
    `task_columns` in a config.

    Raises `TaskError`, `MissingExtra` where a library is missing, or `ConfigError` for a `module:attribute` that does not exist.
    """
    values = _values(source)
    return _tasks(((where, _renamed(where, value, columns)) for where, value in values) if columns else values)


def _values(source: str | Path | Iterable[JSON]) -> Iterator[tuple[str, Any]]:
    """Return (where, value) of each task."""
    if isinstance(source, Path) or (isinstance(source, str) and not is_reference(source)):
        return ((where, _as_task(value)) for where, value in read_tasks(source))
    values: Any = _of_reference(source) if isinstance(source, str) else source
    if isinstance(values, str | bytes | dict) or not isinstance(values, Iterable):
        name = source if isinstance(source, str) else "tasks"
        raise TaskError(
            f"{name} is a {type(cast(Any, values)).__name__}. Use a list of tasks, or name a file or a function that returns one."
        )
    of_source = f" of {source}" if isinstance(source, str) else ""
    return ((f"task {number}{of_source}", item) for number, item in enumerate(cast("Iterable[Any]", values)))


def _of_reference(source: str) -> Any:
    """The tasks of `module:attribute`: a list, or all that a function returns or yields."""
    try:
        values: Any = load_object(source)
        if not callable(values):
            return values
        _check_no_arguments(source, values)
        values = values()
        return list(cast("Iterator[Any]", values)) if isinstance(values, Iterator) else values
    except LightningError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        raise TaskError(f"tasks {source!r} raised {type(error).__name__}: {error} ({place}). Fix it there.") from error


def _check_no_arguments(source: str, function: Callable[..., Any]) -> None:
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise TaskError(f"tasks {source!r} cannot be called without arguments: {error}. Give each argument a default.") from error
    except ValueError:
        return  # a function that is not written in Python may have no signature


def _renamed(where: str, value: Any, columns: Mapping[str, str]) -> Any:
    """Return an object with its keys renamed; any other value as it is."""
    if not isinstance(value, dict):
        return value
    row = cast("dict[str, Any]", value)
    missing = [old for old in columns if old not in row]
    if missing:
        raise TaskError(f"{where}: task_columns renames {missing[0]!r}, but the keys are {', '.join(map(repr, row))}. Name one of them.")
    renamed = {columns.get(key, key): item for key, item in row.items()}
    if len(renamed) < len(row):
        raise TaskError(f"{where}: task_columns gives two keys of {', '.join(map(repr, row))} the same name. Choose another.")
    return renamed


def is_reference(source: str) -> bool:
    """Whether a source of tasks is `module:attribute` rather than a file or a data set."""
    if source.startswith(HUB):
        return False
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
    doubles: list[str] = []
    for where, value in values:
        try:
            _check_json(value.input if isinstance(value, Task) else value)
            task = value if isinstance(value, Task) else Task(task_id(value), value)
        except TaskError as error:
            raise TaskError(f"{where}: {error}") from error
        if task.id in places:
            has_id = isinstance(value, Task) or (isinstance(value, dict) and "id" in value)
            same = "have the same id" if has_id else "are the same task"
            doubles.append(f"{places[task.id]} and {where} {same} ({task.id!r})")
            continue
        places[task.id] = where
        tasks.append(task)
    if doubles:
        more = f"; and {len(doubles) - DOUBLES} more" if len(doubles) > DOUBLES else ""
        raise TaskError(f"{'; '.join(doubles[:DOUBLES])}{more}. Remove one of each pair, or give each its own id.")
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
        raise TaskError(
            f"{here}{value!r:.80} is of type {type(value).__name__}. Convert it to a value that JSON can hold, or leave it out."
        )
