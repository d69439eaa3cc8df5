"""Arithmetic word problems. Train and test share no template, name, or object, and draw their numbers separately."""

from __future__ import annotations

import random
import re
from typing import Any, Literal

Split = Literal["train", "test"]

NAMES: dict[Split, list[str]] = {
    "train": [
        "Anna",
        "Ben",
        "Carla",
        "David",
        "Emma",
        "Frank",
        "Grace",
        "Henry",
        "Julia",
        "Kevin",
        "Laura",
        "Mark",
        "Nina",
        "Oscar",
        "Paula",
        "Robert",
    ],
    "test": ["Alice", "Bruno", "Diana", "Felix", "Hannah", "Igor", "Maria", "Peter", "Sofia", "Tom"],
}
THINGS: dict[Split, list[str]] = {
    "train": ["apples", "books", "cards", "coins", "eggs", "marbles", "pencils", "shells", "stamps", "stickers", "toys", "flowers"],
    "test": ["oranges", "balloons", "buttons", "cookies", "pens", "stones", "tickets", "candles"],
}
TEMPLATES: dict[Split, list[tuple[str, str]]] = {
    "train": [
        ("a+b", "{N} has {a} {X} and buys {b} more. How many {X} does {N} have now?"),
        ("a+b", "There are {a} {X} in one box and {b} {X} in another box. How many {X} are there in total?"),
        ("a+b", "{N} has {a} {X}. {M} has {b} {X}. How many {X} do they have together?"),
        ("s-b", "{N} has {s} {X} and gives {b} to {M}. How many {X} does {N} have left?"),
        ("s-b", "There were {s} {X} in a shop. {b} were sold. How many {X} remain?"),
        ("s-b", "{N} has {s} {X} and {M} has {b} {X}. How many more {X} does {N} have than {M}?"),
        ("p*q", "There are {p} boxes with {q} {X} in each box. How many {X} are there in total?"),
        ("q*p", "{N} buys {q} {X}. Each costs {p} dollars. How many dollars does {N} pay?"),
        ("q*p", "{N} makes {q} {X} every day. How many {X} does {N} make in {p} days?"),
        ("a+b+c", "{N} found {a} {X} on Monday, {b} on Tuesday and {c} on Friday. How many {X} did {N} find in all?"),
    ],
    "test": [
        ("a+b", "{N} collected {a} {X} and {M} collected {b} {X}. How many {X} did they collect together?"),
        ("a+b", "{N} had {a} {X} and then found {b} more. How many {X} does {N} have now?"),
        ("s-b", "{N} had {s} {X} and lost {b} of them. How many {X} are left?"),
        ("s-b", "A shop had {s} {X} and sold {b} of them. How many {X} are left in the shop?"),
        ("p*q", "{N} has {p} bags with {q} {X} in each bag. How many {X} does {N} have in total?"),
        ("p*q", "Each of {p} children gets {q} {X}. How many {X} do they get in total?"),
        ("a+b+c", "{N} picked {a} {X}, {M} picked {b} and {O} picked {c}. How many {X} did they pick in all?"),
    ],
}
ANSWERS = {
    "a+b": lambda n: n["a"] + n["b"],
    "s-b": lambda n: n["s"] - n["b"],
    "p*q": lambda n: n["p"] * n["q"],
    "q*p": lambda n: n["p"] * n["q"],
    "a+b+c": lambda n: n["a"] + n["b"] + n["c"],
}


def make_tasks(split: Split, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return `count` different tasks of a split. The same arguments give the same tasks. Templates rotate."""
    rng = random.Random(f"{split}:{seed}")  # noqa: S311  # not for secrets
    tasks: dict[str, dict[str, Any]] = {}
    order: list[int] = []
    while len(tasks) < count:
        order = order or rng.sample(range(len(TEMPLATES[split])), len(TEMPLATES[split]))
        form, text = TEMPLATES[split][order.pop()]
        b, p = rng.randint(11, 99), rng.randint(3, 12)
        a, c, s, q = rng.randint(11, 99), rng.randint(11, 99), b + rng.randint(11, 99), rng.randint(11, 49)
        numbers = {"a": a, "b": b, "c": c, "s": s, "p": p, "q": q}
        people = dict(zip("NMO", rng.sample(NAMES[split], 3), strict=True))
        question = text.format(**numbers, **people, X=rng.choice(THINGS[split]))
        tasks[question] = {"question": question, "answer": ANSWERS[form](numbers)}
    return list(tasks.values())


def train_tasks() -> list[dict[str, Any]]:
    """Return the demo's training tasks."""
    return make_tasks("train", 2000)


def eval_tasks() -> list[dict[str, Any]]:
    """Return the demo's eval tasks."""
    return make_tasks("test", 64)


def number_in(text: str) -> float | None:
    """Return the last number in a text, ignoring thousands separators."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return float(numbers[-1]) if numbers else None
