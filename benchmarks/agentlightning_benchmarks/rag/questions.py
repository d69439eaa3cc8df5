"""Questions about the invented world: one hop asks for a fact, two hops name the thing asked about by a fact of something else.

Every relation is asked for, and named, in other words in the train split than in the test split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agentlightning_benchmarks.rag.world import Entity, Kind, Split, make_world


@dataclass(frozen=True, slots=True)
class Relation:
    """A fact that entities of one kind have."""

    of: Kind
    asked: dict[Split, tuple[str, ...]]
    """Questions for it; `{x}` is the entity."""
    named: dict[Split, tuple[str, ...]]
    """Phrases for what it leads to; empty where that is no entity."""


NONE: dict[Split, tuple[str, ...]] = {"train": (), "test": ()}
RELATIONS = {
    "birthplace": Relation(
        "person",
        {
            "train": ("Where was {x} born?", "In which town was {x} born?", "What is the birthplace of {x}?"),
            "test": ("Which town was {x} born in?", "Name the town where {x} was born."),
        },
        {"train": ("the town where {x} was born", "the birthplace of {x}"), "test": ("the town that {x} was born in",)},
    ),
    "job": Relation(
        "person",
        {
            "train": ("What is the job of {x}?", "What does {x} work as?", "Which profession does {x} have?"),
            "test": ("What does {x} do for a living?", "What is the profession of {x}?"),
        },
        NONE,
    ),
    "employer": Relation(
        "person",
        {
            "train": ("Which company does {x} work for?", "Who employs {x}?", "What is the employer of {x}?"),
            "test": ("For which company does {x} work?", "Name the company that employs {x}."),
        },
        {"train": ("the company that {x} works for", "the employer of {x}"), "test": ("the company that employs {x}",)},
    ),
    "founder": Relation(
        "company",
        {
            "train": ("Who founded {x}?", "Who is the founder of {x}?", "By whom was {x} founded?"),
            "test": ("Which person founded {x}?", "Name the founder of {x}."),
        },
        {"train": ("the founder of {x}", "the person who founded {x}"), "test": ("the one who founded {x}",)},
    ),
    "seat": Relation(
        "company",
        {
            "train": ("Where is {x} based?", "In which town is {x} based?", "What is the home town of {x}?"),
            "test": ("Which town is {x} based in?", "Name the town where {x} is based."),
        },
        {"train": ("the town where {x} is based", "the home town of {x}"), "test": ("the town that {x} is based in",)},
    ),
    "product": Relation(
        "company",
        {
            "train": ("What does {x} make?", "What is made by {x}?", "Which goods does {x} make?"),
            "test": ("What does {x} produce?", "Name the product of {x}."),
        },
        NONE,
    ),
    "author": Relation(
        "book",
        {
            "train": ("Who wrote {x}?", "Who is the author of {x}?", "By whom was {x} written?"),
            "test": ("Which person wrote {x}?", "Name the author of {x}."),
        },
        {"train": ("the author of {x}", "the person who wrote {x}"), "test": ("the writer of {x}",)},
    ),
    "year": Relation(
        "book",
        {
            "train": ("When was {x} published?", "In which year was {x} published?"),
            "test": ("What year was {x} published in?", "In what year did {x} appear?"),
        },
        NONE,
    ),
    "river": Relation(
        "town",
        {
            "train": ("Which river flows through {x}?", "On which river does {x} lie?", "What is the river of {x}?"),
            "test": ("What river runs through {x}?", "Name the river that {x} lies on."),
        },
        NONE,
    ),
    "mayor": Relation(
        "town",
        {
            "train": ("Who is the mayor of {x}?", "Who is mayor in {x}?", "What is the name of the mayor of {x}?"),
            "test": ("Which person is mayor of {x}?", "Name the mayor of {x}."),
        },
        {"train": ("the mayor of {x}", "the person who is mayor of {x}"), "test": ("the one who is mayor of {x}",)},
    ),
}


def one_hop(split: Split) -> Iterator[dict[str, Any]]:
    """Every question for one fact, in each of its phrasings."""
    for entity in make_world(split).entities.values():
        for relation, answer in entity.facts.items():
            for text in RELATIONS[relation].asked[split]:
                yield _question(text.format(x=entity.name), [(f"{entity.name} >> {relation}", answer)])


def two_hops(split: Split) -> Iterator[dict[str, Any]]:
    """Every question for a fact of what a fact leads to, in each pair of phrasings; none whose answer it names."""
    world = make_world(split).entities
    for entity in world.values():
        for first, between in _links(entity):
            for second, answer in world[between].facts.items():
                hops = [(f"{entity.name} >> {first}", between), (f"#1 >> {second}", answer)]
                for phrase in RELATIONS[first].named[split]:
                    for text in RELATIONS[second].asked[split]:
                        if answer != entity.name:
                            yield _question(text.format(x=phrase.format(x=entity.name)), hops)


def _links(entity: Entity) -> Iterator[tuple[str, str]]:
    for relation, target in entity.facts.items():
        if RELATIONS[relation].named["train"]:
            yield relation, target


def _question(text: str, hops: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "question": text,
        "answer": hops[-1][1],
        "answer_aliases": [],
        "decomposition": [{"question": question, "answer": answer} for question, answer in hops],
    }
