"""Questions about the invented world. One hop asks for a fact; two hops name its subject by a fact of something else.

`relations.json` has the phrasings. The test split asks for every relation, and names it, in other words than the train split.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from agentlightning_benchmarks.rag.world import Entity, Kind, Split, read_world


class Relation(msgspec.Struct, frozen=True):
    """A fact that entities of one kind have."""

    of: Kind
    asked: dict[Split, tuple[str, ...]]
    """Questions for the fact; `{x}` is the entity."""
    named: dict[Split, tuple[str, ...]]
    """Phrases for the entity that the fact names; empty if it names none."""


@cache
def relations() -> dict[str, Relation]:
    """Return the relations by name."""
    return msgspec.json.decode(Path(__file__).with_name("relations.json").read_bytes(), type=dict[str, Relation])


def one_hop(split: Split) -> Iterator[dict[str, Any]]:
    """Every question for one fact, in each of its phrasings."""
    for entity in read_world()[split].values():
        for relation, answer in entity.facts.items():
            for text in relations()[relation].asked[split]:
                yield _question(text.format(x=entity.name), [(f"{entity.name} >> {relation}", answer)])


def two_hops(split: Split) -> Iterator[dict[str, Any]]:
    """Every question for a fact of what a fact leads to, in each pair of phrasings; none whose answer it names."""
    world = read_world()[split]
    for entity in world.values():
        for first, between in _links(entity):
            for second, answer in world[between].facts.items():
                hops = [(f"{entity.name} >> {first}", between), (f"#1 >> {second}", answer)]
                for phrase in relations()[first].named[split]:
                    for text in relations()[second].asked[split]:
                        if answer != entity.name:
                            yield _question(text.format(x=phrase.format(x=entity.name)), hops)


def _links(entity: Entity) -> Iterator[tuple[str, str]]:
    for relation, target in entity.facts.items():
        if relations()[relation].named["train"]:
            yield relation, target


def _question(text: str, hops: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "question": text,
        "answer": hops[-1][1],
        "answer_aliases": [],
        "decomposition": [{"question": question, "answer": answer} for question, answer in hops],
    }
