"""Files and data sets of tasks, as (where, value) pairs. A path is a file by its extension, in any case; `.gz` may follow it."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

from agentlightning.errors import MissingExtra, TaskError

HUB = "hf:"
"""Prefix of a Hugging Face data set."""
HUB_ADVICE = "Check its name and the network, or name a file of tasks or a folder with a saved data set."
Located = Iterator[tuple[str, Any]]


def read_tasks(source: str | Path) -> Located:
    """Yield (where, value) of each task in a file or a data set. Raises `TaskError`, or `MissingExtra` where a library is missing."""
    empty = True
    for where, value in _data_set(str(source)) if str(source).startswith(HUB) else _file(Path(source)):
        empty = False
        yield where, value
    if empty:
        raise TaskError(f"{source}: The file has no tasks. Add at least one.")


def _file(path: Path) -> Located:
    zipped = path.suffix.lower() == ".gz"
    kind = (path.with_suffix("") if zipped else path).suffix.lower()
    if kind == ".parquet" and not zipped:
        return _parquet(path)
    if kind not in TEXT_FORMATS:
        shown = "".join(path.suffixes[-2:] if zipped else path.suffixes[-1:]) or "nothing"
        raise TaskError(
            f"{path}: The name ends with {shown!r}. Use .jsonl or .ndjson (a value on each line), .json (a list), .csv, .tsv, or .parquet."
        )
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if zipped else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TaskError(f"{path}: The file is not complete gzip: {error}. Compress it again.") from error
    except OSError as error:
        raise TaskError(f"{path}: The tasks file cannot be read: {error.strerror or error}. Check its path.") from error
    return TEXT_FORMATS[kind](path, data.removeprefix(b"\xef\xbb\xbf"))  # an editor may have put a byte-order mark


def _lines(path: Path, data: bytes) -> Located:
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if lines and lines[0][1].lstrip().startswith(b"[") and _is_list(data):
        raise TaskError(f"{path}: The file holds one list, not a value on each line. Name it .json.")
    for number, line in lines:
        yield f"{path}, line {number}", _parse(line, f"{path}, line {number}")


def _is_list(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), list)
    except (ValueError, RecursionError):
        return False


def _items(path: Path, data: bytes) -> Located:
    value: Any = _parse(data, str(path)) if data.strip() else []
    if not isinstance(value, list):
        raise TaskError(f"{path}: The file holds a {type(value).__name__}. Use a list of tasks, or a .jsonl file with one on each line.")
    for number, item in enumerate(cast("list[Any]", value)):
        yield f"{path}, item {number}", item


def _table(separator: str) -> Callable[[Path, bytes], Located]:
    """A reader of tables with a header. Every value of a row is text."""

    def read(path: Path, data: bytes) -> Located:
        reader = csv.reader(io.StringIO(_text(data, str(path)), newline=""), delimiter=separator, strict=True)
        try:
            header = next(reader, list[str]())
            if len(header) == 1 and any(other in header[0] for other in {",", ";", "\t"} - {separator}):
                raise TaskError(f"{path}, line 1: The header is one column, {header[0]!r}. Separate the columns with {separator!r}.")
            if len(set(header)) < len(header) or "" in header:
                raise TaskError(f"{path}, line 1: The header is {header}. Give each column a name of its own.")
            for row in reader:
                if len(row) != len(header) and row:
                    raise TaskError(f"{path}, line {reader.line_num}: The row has {len(row)} values, and the header {len(header)}.")
                if row:
                    yield f"{path}, line {reader.line_num}", dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise TaskError(f"{path}, line {reader.line_num}: This is no row of a table: {error}. Correct it.") from error

    return read


TEXT_FORMATS: dict[str, Callable[[Path, bytes], Located]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _items,
    ".csv": _table(","),
    ".tsv": _table("\t"),
}


def _parquet(path: Path) -> Located:
    parquet = _library("pyarrow.parquet", "Parquet files need pyarrow", "parquet")
    try:
        with parquet.ParquetFile(path) as file:
            rows = [row for batch in file.iter_batches() for row in batch.to_pylist()]
    except OSError as error:
        raise TaskError(f"{path}: The tasks file cannot be read: {error.strerror or error}. Check its path.") from error
    except ValueError as error:  # pyarrow's errors are ValueErrors
        raise TaskError(f"{path}: This is not a Parquet file: {error}") from error
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", row


def _data_set(source: str) -> Located:
    """The rows of `hf:NAME[:CONFIG[:SPLIT]]`. NAME is one of the hub, or a folder; SPLIT is `train` by default."""
    parts = source.removeprefix(HUB).split(":")
    if not parts[0] or len(parts) > 3:
        raise TaskError(f"{source!r} names no data set. Write hf:NAME:CONFIG:SPLIT, such as hf:openai/gsm8k:main:train.")
    name, config, split = [*parts, "", ""][:3]
    datasets = _library("datasets", "Data sets of Hugging Face need the library datasets", "datasets")
    saved = (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "state.json").is_file()
    try:
        rows: Any = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config or None, split=split or "train")
        rows = rows[split or "train"] if (Path(name) / "dataset_dict.json").is_file() else rows
    except Exception as error:  # any of the library, of the hub's client, of the network
        raise TaskError(f"{source}: The data set cannot be loaded: {type(error).__name__}: {error}. {HUB_ADVICE}") from error
    for number, row in enumerate(rows):
        yield f"{source}, row {number}", row


def _library(module: str, sentence: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f"{sentence}, which is not installed. Run: pip install 'agentlightning[{extra}]'") from error


def _parse(text: bytes, where: str) -> Any:
    decoded = _text(text, where)
    try:
        return json.loads(decoded, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        shown = decoded.strip()
        shown = shown if len(shown) <= 60 else shown[:60] + "…"
        raise TaskError(f"{where}: This is not JSON: {error.msg} ({line}column {error.colno}) in {shown!r}. Correct it.") from error
    except RecursionError as error:
        raise TaskError(f"{where}: The value is nested too deeply. Use fewer levels.") from error
    except ValueError as error:
        raise TaskError(f"{where}: This is not JSON: {error}. Correct it.") from error


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise TaskError(f"{where}: The file is not UTF-8 at byte {error.start + 1}. Save it as UTF-8.") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
