"""Tasks: generated questions about the fictional world, and real ones from files.

A task has `id`, `question`, `answer`, `answer_aliases`, `decomposition` (question and answer of each known hop), and `corpus` (file to
search, passages per query, words per passage).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from agentlightning.errors import ConfigError
from agentlightning_benchmarks.bench.benchmark import Benchmark
from agentlightning_benchmarks.rag.files import Line, checked_text, read_lines
from agentlightning_benchmarks.rag.index import open_index
from agentlightning_benchmarks.rag.questions import one_hop, two_hops
from agentlightning_benchmarks.rag.world import Split, corpus_file

TRAIN, TEST = 2000, 64
"""Number of generated tasks."""
HOPS = (1, 2)
"""Hops of the generated tasks, in rotation."""
SHOWN = {"top_k": 1, "words": 40}
"""Passages per query and words per passage for the generated corpus. Short passages keep prompts small enough for a CPU."""
SHOWN_REAL = {"top_k": 2, "words": 60}
FILES = "train.jsonl, dev.jsonl and corpus.jsonl, as MuSiQue's"


def train_tasks() -> list[dict[str, Any]]:
    """Return the CPU preset's training tasks."""
    return make_tasks("train", TRAIN)


def test_tasks() -> list[dict[str, Any]]:
    """Return the CPU preset's test tasks. They share no names or phrasings with the training tasks."""
    return make_tasks("test", TEST)


def make_tasks(split: Split, count: int) -> list[dict[str, Any]]:
    """Return `count` different tasks of a split, always the same ones. Their hops follow `HOPS`."""
    rng = random.Random(f"tasks:{split}")  # noqa: S311  # not for secrets
    hops = [HOPS[number % len(HOPS)] for number in range(count)]
    drawn = {kind: iter(rng.sample(list(ask(split)), hops.count(kind))) for kind, ask in ((1, one_hop), (2, two_hops))}
    corpus = {"path": str(corpus_file()), **SHOWN}
    return [{"id": f"{split}-{number:04}", **next(drawn[kind]), "corpus": corpus} for number, kind in enumerate(hops)]


def load(data: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return train and test tasks from a folder of real files, and index its corpus if needed. Raises a `ConfigError` that names the file
    and line."""
    if not data.is_dir():
        raise ConfigError(f"{data}: this folder does not exist. Expected one with {FILES}.")
    for name in ("corpus.jsonl", "train.jsonl", "dev.jsonl"):
        if not (data / name).is_file():
            raise ConfigError(f"{data / name}: this file does not exist. Expected a folder with {FILES}.")
    path = (data / "corpus.jsonl").resolve()
    ids = {passage.id for passage in open_index(str(path)).passages}
    corpus = {"path": str(path), **SHOWN_REAL}
    train, test = (_read(data / name, ids, corpus) for name in ("train.jsonl", "dev.jsonl"))
    return train, test


def _read(path: Path, ids: set[str], corpus: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**task, "corpus": corpus} for task in _different(_task(line, ids) for line in read_lines(path, "questions with answers"))]


def _task(line: Line, ids: set[str]) -> tuple[str, dict[str, Any]]:
    """Return a task and its position in the file."""
    for id in line.many("supporting_ids"):
        if id not in ids:
            raise ConfigError(
                f"{line.where}: 'supporting_ids' has {id!r:.60}, which is not in the corpus. Check that the files belong together."
            )
    return line.where, {
        "id": line.text("id"),
        "question": line.text("question"),
        "answer": line.text("answer"),
        "answer_aliases": [
            checked_text(value, f"{line.where}: 'answer_aliases[{i}]'") for i, value in enumerate(line.many("answer_aliases"))
        ],
        "decomposition": [_hop(value, f"{line.where}: 'decomposition[{i}]'") for i, value in enumerate(line.many("decomposition"))],
    }


def _hop(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {value!r:.60}. Expected an object with question and answer.")
    hop = Line(where, cast("dict[str, Any]", value))
    return {"question": hop.text("question"), "answer": hop.text("answer")}


def _different(tasks: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    places: dict[str, str] = {}
    for where, task in tasks:
        if task["id"] in places:
            raise ConfigError(f"{where}: the id {task['id']!r} also occurs in {places[task['id']]}. Use unique ids.")
        places[task["id"]] = where
        yield task


BENCHMARK = Benchmark(folder=Path(__file__).parent, load=load)
