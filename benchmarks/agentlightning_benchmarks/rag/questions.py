"""Questions about the fictional world.

A one-hop question asks for a fact. A two-hop question names its subject through another fact. `relations.json` holds the phrasings. The
test split covers every relation, but with different phrasings.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from agentlightning_benchmarks.rag.world import Entity, Kind, Split, read_world


class Relation(msgspec.Struct, frozen=True):
    """A type of fact about entities of one kind."""

    of: Kind
    asked: dict[Split, tuple[str, ...]]
    """Questions for the fact. `{x}` is the entity."""
    named: dict[Split, tuple[str, ...]]
    """Phrases for the entity named by the fact. Empty if the fact names none."""


@cache
def relations() -> dict[str, Relation]:
    """Return the relations by name."""
    return msgspec.json.decode(Path(__file__).with_name("relations.json").read_bytes(), type=dict[str, Relation])


def one_hop(split: Split) -> Iterator[dict[str, Any]]:
    """Return every question about one fact, in each phrasing."""
    for entity in read_world()[split].values():
        for relation, answer in entity.facts.items():
            for text in relations()[relation].asked[split]:
                yield _question(text.format(x=entity.name), [(f"{entity.name} >> {relation}", answer)])


def two_hops(split: Split) -> Iterator[dict[str, Any]]:
    """Return every two-hop question, in each pair of phrasings. Questions that contain their answer are left out."""
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
