"""Text-to-SQL tasks: generated ones, and Spider's from files.

A task has `id`, `question`, `schema` (text), `database` (a path), the gold `query`, and optionally `variants`: paths of the same database
with other contents. A right query must be right on all of them. Spider tasks have variants only with the test suite. They also have a
`hardness`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentlightning.config.tasks import load_tasks
from agentlightning.errors import ConfigError, TaskError
from agentlightning_benchmarks.bench.benchmark import Benchmark
from agentlightning_benchmarks.text_to_sql.archive import unpack
from agentlightning_benchmarks.text_to_sql.database import described_schema
from agentlightning_benchmarks.text_to_sql.domains import vocabulary
from agentlightning_benchmarks.text_to_sql.generate import make_tasks

Tasks = list[dict[str, Any]]


def shown_tasks() -> Tasks:
    """Return the CPU preset's warm-up tasks: 800 questions on ten domains with six variants each."""
    return make_tasks("train", 800, 6, list(vocabulary()["train"].domains)[:10])


def train_tasks() -> Tasks:
    """Return the CPU preset's training tasks: 800 questions on ten other domains.

    The model memorizes the schemas of its warm-up, so rewards on them say little about new ones.
    """
    return make_tasks("train", 800, 6, list(vocabulary()["train"].domains)[10:])


def test_tasks() -> Tasks:
    """Return 64 questions on ten other domains. Their tables, columns (except `name` and `title`), and texts never occur in training."""
    return make_tasks("test", 64, 2)


test_tasks.__test__ = False  # type: ignore[attr-defined]  # pytest takes it for a test where it is imported


def load(data: Path, *, test_suite: bool = False) -> tuple[Tasks, Tasks]:
    """Return train and test tasks from a folder of real files.

    The folder has `train.jsonl`, `dev.jsonl`, and `database.zip`, or Spider's own `train_spider.json`, `dev.json`, and `database/`. A test
    suite also needs `test_suite_variants.zip`. A zip is unpacked once, into the cache folder. Raises a `ConfigError` that names the file.
    """
    train, dev = (_existing(data, *names) for names in (("train.jsonl", "train_spider.json"), ("dev.jsonl", "dev.json")))
    questions = _rows(train), _rows(dev)
    place = _existing(data, "database.zip", "database")
    databases = place if place.is_dir() else unpack(place, "database")
    variants = unpack(data / "test_suite_variants.zip", "test_suite") if test_suite else None
    schemas: dict[str, str] = {}
    return (
        [_task(row, train, databases, place, None, schemas) for row in questions[0]],
        [_task(row, dev, databases, place, variants, schemas) for row in questions[1]],
    )


def _existing(data: Path, ours: str, authors: str) -> Path:
    """Return whichever of two files exists, or ours if neither does."""
    return data / authors if (data / authors).exists() and not (data / ours).exists() else data / ours


def _rows(path: Path) -> Tasks:
    try:
        rows: list[Any] = [task.input for task in load_tasks(path)]
    except TaskError as error:
        raise ConfigError(
            f"{str(error).removesuffix('.')}. Expected Spider's questions, an object with db_id, question and query on each line."
        ) from error
    for number, row in enumerate(rows, 1):
        fields: dict[str, Any] = row if isinstance(row, dict) else {}
        wrong = [key for key in ("db_id", "question", "query") if not isinstance(fields.get(key), str)]
        if wrong:
            raise ConfigError(f"{path}, question {number}: {', '.join(wrong)} missing or no text. Expected db_id, question and query.")
    return rows


def _task(row: dict[str, Any], path: Path, databases: Path, place: Path, variants: Path | None, schemas: dict[str, str]) -> dict[str, Any]:
    name: str = row["db_id"]
    file = databases / name / f"{name}.sqlite"
    if name not in schemas:
        if not name or Path(name).name != name or not (databases / name).is_dir():
            raise ConfigError(f"{path}: the database {name!r} is not in {place}. Expected database/{name}/{name}.sqlite.")
        try:
            schemas[name] = described_schema(file)
        except OSError as error:
            raise ConfigError(f"{path}: {error}") from error
    task = {key: row[key] for key in ("id", "question", "query", "hardness") if key in row}
    task |= {"schema": schemas[name], "database": str(file)}
    if variants is not None:
        task["variants"] = [str(variant) for variant in sorted((variants / name).glob("*.sqlite"))]
        if not task["variants"]:
            raise ConfigError(
                f"{path}: no variants of {name!r} in {path.with_name('test_suite_variants.zip')}. Expected test_suite/{name}/*.sqlite."
            )
    return task


BENCHMARK = Benchmark(folder=Path(__file__).parent, load=load)
