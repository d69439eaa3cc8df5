"""The fictional world of the benchmark, stored in `world.json`: its entities and the corpus of their passages.

Train and test each have half of the world, in one corpus. The halves share no names, and no fact links them. `benchmarks/worlds/rag.py`
writes the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from agentlightning.config.models import cache_folder
from agentlightning.types import new_id

Split = Literal["train", "test"]
Kind = Literal["town", "company", "person", "book"]

FILE = Path(__file__).with_name("world.json")


class Entity(msgspec.Struct, frozen=True):
    """An entity with its own passage."""

    name: str
    kind: Kind
    facts: dict[str, str]
    """Facts by relation. Some values name other entities. The passage contains all facts."""
    passage: str


@cache
def read_world() -> dict[Split, dict[str, Entity]]:
    """Return the entities of each half by name."""
    halves = msgspec.json.decode(FILE.read_bytes(), type=dict[Split, list[Entity]])
    return {split: {entity.name: entity for entity in entities} for split, entities in halves.items()}


def corpus_file() -> Path:
    """Return the corpus of both halves. Write it into the cache folder if it is missing."""
    entities = [entity for half in read_world().values() for entity in half.values()]
    entities.sort(key=lambda entity: entity.name)  # mixes kinds and halves
    lines = [json.dumps({"id": f"g{i:04}", "title": entity.name, "text": entity.passage}) for i, entity in enumerate(entities)]
    data = ("\n".join(lines) + "\n").encode()
    path = cache_folder() / "rag" / f"corpus-{hashlib.sha256(data).hexdigest()[:24]}.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{new_id()}")
        part.write_bytes(data)
        os.replace(part, path)
    return path
