"""Public data sets by name. Each is downloaded once into the cache folder and converted to the benchmark's own files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from agentlightning.config.models import cache_folder
from agentlightning.errors import ConfigError
from agentlightning.types import new_id

SOURCES = {
    # base URL, then the train and test files
    "gsm8k": (
        "https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/",
        ("train.jsonl", "test.jsonl"),
    ),
    "musique": (
        "https://huggingface.co/datasets/dgslibisey/MuSiQue/resolve/main/",
        ("musique_ans_v1.0_train.jsonl", "musique_ans_v1.0_dev.jsonl"),
    ),
}
NAMES = {"math": "gsm8k", "rag": "musique", "text-to-sql": "spider"}
"""Data set names by benchmark."""
SPIDER = (
    "Spider cannot be downloaded automatically. Download and unpack the zip from its authors (https://yale-lily.github.io/spider). "
    "Pass the folder with train_spider.json, dev.json, and database/ with --data DIR."
)
Rows = Iterable[dict[str, Any]]


def data_folder(benchmark: str, data: Path) -> Path:
    """Return the folder for `--data`: an existing folder, or the cached public data set with this name.

    Downloads the data set if it is missing. Raises `ConfigError` if the download fails. The benchmark itself rejects unknown names.
    """
    name = str(data)
    if data.is_dir() or name != NAMES.get(benchmark):
        return data.resolve()
    if name not in SOURCES:
        raise ConfigError(SPIDER)
    folder = cache_folder() / "data" / name
    if not folder.is_dir():
        _fetch(name, folder)
    return folder


def _fetch(name: str, folder: Path) -> None:
    """Fill a temporary folder and rename it, so that an interrupted download never looks complete."""
    base, files = SOURCES[name]
    part = folder.with_name(f".{name}.{new_id()}")
    part.mkdir(parents=True)
    try:
        for file in files:
            try:
                _download(base + file, part / file)
            except (httpx.HTTPError, OSError) as error:
                cause = (str(error) or type(error).__name__).splitlines()[0]
                raise ConfigError(
                    f"{base}{file} cannot be downloaded: {cause}. Connect to the network once, or download the files of {name} elsewhere "
                    "and pass their folder with --data DIR."
                ) from error
        train, test = (part / file for file in files)
        try:
            for file, rows in CONVERTERS[name](_lines(train), _lines(test)).items():
                _write(part / f"{file}.new", rows)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"The files from {base} are not in the format of {name}: {type(error).__name__}: {error}. Pass a folder with --data DIR."
            ) from error
        for file in (train, test):
            file.unlink()
        for file in part.glob("*.new"):
            file.rename(file.with_suffix(""))
        if not folder.is_dir():  # another process may have finished first
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _download(url: str, path: Path) -> None:
    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with (
        httpx.stream("GET", url, follow_redirects=True, timeout=60) as answer,
        path.open("wb") as file,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        answer.raise_for_status()
        size = answer.headers.get("Content-Length")
        task = progress.add_task(url.rpartition("/")[2], total=int(size) if size and "Content-Encoding" not in answer.headers else None)
        for data in answer.iter_bytes():
            file.write(data)
            progress.advance(task, len(data))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _write(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _gsm8k(train: Rows, test: Rows) -> dict[str, Rows]:
    """Return GSM8K's rows. The answer follows `####` at the end of the solution."""

    def rows(split: str, rows_of_split: Rows) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows_of_split):
            _, mark, answer = row["answer"].rpartition("####")
            if not mark:
                raise ValueError(f"{split} row {number}: no #### before the answer")
            yield {"id": f"{split}-{number:04}", "question": row["question"], "answer": answer.strip()}

    return {"train.jsonl": rows("train", train), "dev.jsonl": rows("test", test)}


def _musique(train: Rows, test: Rows) -> dict[str, Rows]:
    """Return MuSiQue's rows. The corpus holds each paragraph of the questions once."""
    corpus: dict[tuple[str, str], str] = {}

    def row(question: dict[str, Any]) -> dict[str, Any]:
        supporting: list[str] = []
        for paragraph in question["paragraphs"]:
            key = (paragraph["title"], paragraph["paragraph_text"])
            id = corpus.setdefault(key, f"m{len(corpus):06}")
            if paragraph["is_supporting"]:
                supporting.append(id)
        return {
            "id": question["id"],
            "question": question["question"],
            "answer": question["answer"],
            "answer_aliases": question["answer_aliases"],
            "supporting_ids": supporting,
            "decomposition": [{"question": hop["question"], "answer": hop["answer"]} for hop in question["question_decomposition"]],
        }

    questions = {"train.jsonl": [row(line) for line in train], "dev.jsonl": [row(line) for line in test]}
    return {**questions, "corpus.jsonl": ({"id": id, "title": title, "text": text} for (title, text), id in corpus.items())}


CONVERTERS: dict[str, Callable[[Rows, Rows], dict[str, Rows]]] = {"gsm8k": _gsm8k, "musique": _musique}
