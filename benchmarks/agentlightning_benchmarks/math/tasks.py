"""Word problems: generated ones, and GSM8K's from files.

A task has `id`, `question`, and `answer`. A generated task also has its `expression`, which the agent never sees. Generated train and test
tasks share no template, name, or object.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from agentlightning.errors import ConfigError
from agentlightning_benchmarks.bench.benchmark import Benchmark
from agentlightning_benchmarks.math.agent import calculator
from agentlightning_benchmarks.math.reward import number_in
from agentlightning_benchmarks.math.templates import NAMES, TEMPLATES, THINGS

Split = Literal["train", "test"]
TRAIN, TEST = 2000, 64
"""Number of generated tasks."""
FILES = "train.jsonl and dev.jsonl, with question and answer in each line, as GSM8K's"


def train_tasks() -> list[dict[str, Any]]:
    """Return the CPU preset's training tasks."""
    return make_tasks("train", TRAIN)


def test_tasks() -> list[dict[str, Any]]:
    """Return the CPU preset's test tasks."""
    return make_tasks("test", TEST)


def make_tasks(split: Split, count: int) -> list[dict[str, Any]]:
    """Return `count` different tasks of a split, always the same ones.

    Problems with one calculation alternate with longer ones, and their templates rotate. With two thirds long problems, a small model earns
    no reward in too many groups.
    """
    rng = random.Random(f"math:{split}")  # noqa: S311  # not for secrets
    tasks: dict[str, dict[str, Any]] = {}
    kinds = [[template for template in TEMPLATES[split] if (operations(template[0]) == 1) == one] for one in (True, False)]
    orders: list[list[tuple[str, str]]] = [[], []]
    while len(tasks) < count:
        kind = len(tasks) % 2
        orders[kind] = orders[kind] or rng.sample(kinds[kind], len(kinds[kind]))
        form, text = orders[kind].pop()
        numbers = draw(form, rng)
        people = dict(zip("NMO", rng.sample(NAMES[split], 3), strict=True))
        expression = form.format(**numbers)
        question = text.format(**numbers, **people, X=rng.choice(THINGS[split]))
        tasks[question] = {"question": question, "answer": calculator(expression), "expression": expression}
    return [{"id": f"{split}-{number:04}", **task} for number, task in enumerate(tasks.values())]


def operations(form: str) -> int:
    """Return the number of calculations in a form."""
    return sum(form.count(sign) for sign in "+-*/")


def draw(form: str, rng: random.Random) -> dict[str, int]:
    """Draw numbers that a small model can copy. Every result is a positive integer."""
    a, b, c = (rng.randint(11, 79) for _ in range(3))
    p, q, r = rng.randint(3, 9), rng.randint(11, 39), rng.randint(3, 9)
    t = rng.randint(11, 39)
    if "{m}" in form:  # the total to share
        return {"p": p, "m": p * q, "b": b, "c": c}
    if form.startswith("({s}-{b})/{p}"):
        return {"s": b + p * q, "b": b, "p": p}
    if form.startswith("{s}-{b}-{c}"):
        return {"s": b + c + a, "b": b, "c": c}
    if form.startswith("{s}-{p}*{q}"):
        return {"s": p * q + a, "p": p, "q": q}
    if form.startswith("{p}*{q}-{b}"):
        return {"p": p, "q": q, "b": rng.randint(2, p * q - 10)}
    if form.startswith("{a}+{b}-{c}"):
        return {"a": a, "b": b, "c": rng.randint(2, a + b - 5)}
    return {"a": a, "b": b, "c": c, "s": b + a, "p": p, "q": q, "r": r, "t": t}


def load(data: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return train and test tasks from a folder of real files. Raises a `ConfigError` that names the file and line."""
    if not data.is_dir():
        raise ConfigError(f"{data}: this folder does not exist. Expected one with {FILES}.")
    train, test = (_read(data / name) for name in ("train.jsonl", "dev.jsonl"))
    return train, test


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ConfigError(f"{path}: this file does not exist. Expected a folder with {FILES}.")
    tasks = list(_tasks(path))
    if not tasks:
        raise ConfigError(f"{path} is empty. Expected a folder with {FILES}.")
    return tasks


def _tasks(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # `splitlines` would also split inside questions
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Expected a folder with {FILES}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, answer = row["question"], str(row["answer"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}, line {number}: {type(error).__name__}: {error}. Expected {FILES}.") from error
        if not isinstance(question, str) or not question.strip() or number_in(answer) is None:
            raise ConfigError(
                f"{path}, line {number}: the question is not text, or the answer {answer!r:.40} has no number. Expected {FILES}."
            )
        yield {"id": str(row.get("id", f"{path.stem}-{number}")), "question": question, "answer": answer}


BENCHMARK = Benchmark(folder=Path(__file__).parent, load=load)
