"""Writes the fictional world of the RAG benchmark: `python benchmarks/worlds/rag.py`.

The world holds towns, companies, people, and books with consistent facts, and a passage for each. Train and test each have half of the
world, in one corpus. The halves share no names, and no fact links them. The output is always identical.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from agentlightning_benchmarks.rag.world import FILE, Entity, Kind, Split

SIZES: dict[Split, dict[Kind, int]] = {
    "train": {"town": 40, "company": 60, "person": 120, "book": 60},
    "test": {"town": 16, "company": 20, "person": 40, "book": 20},
}
STEMS = (
    *("Bal", "Bren", "Cal", "Cor", "Dal", "Dren", "El", "Far", "Fen", "Gar", "Gil", "Hal", "Har", "Kel", "Kes", "Lan", "Lor", "Mar"),
    *("Mel", "Nor", "Or", "Pel", "Pren", "Ras", "Ros", "Sel", "Stan", "Tal", "Tor", "Ver", "Vol", "Wes", "Win", "Yar", "Zel"),
)
ENDINGS = {
    "town": ("bridge", "bury", "by", "combe", "ford", "ham", "holm", "mere", "mouth", "stead", "wick"),
    "river": ("a", "ane", "el", "ine", "is", "o", "une"),
    "surname": ("an", "dale", "en", "er", "ett", "ick", "lin", "man", "mond", "nell", "or", "os", "son", "vik"),
    "company": ("da", "dex", "gate", "ix", "land", "mark", "more", "ric", "ta", "vale", "via"),
}
FIRST_NAMES: dict[Split, tuple[str, ...]] = {
    "train": (
        *("Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Ivan", "Julia", "Kevin", "Laura", "Mark", "Nina"),
        *("Oscar", "Paula", "Quentin", "Robert", "Sarah", "Tim", "Vera", "Walter", "Yvonne", "Zoe"),
    ),
    "test": ("Alice", "Bruno", "Clara", "Diana", "Eric", "Felix", "Hannah", "Igor", "Lena", "Maria", "Peter", "Ruth", "Sofia", "Tom"),
}
FIRMS: dict[Split, tuple[str, ...]] = {
    "train": ("Brothers", "Company", "Group", "Industries", "Partners", "Works"),
    "test": ("and Sons", "Limited", "Trading"),
}
ADJECTIVES: dict[Split, tuple[str, ...]] = {
    "train": ("Silent", "Golden", "Broken", "Distant", "Hidden", "Burning", "Last", "Frozen", "Empty", "Crooked"),
    "test": ("Bitter", "Crimson", "Hollow", "Narrow", "Patient"),
}
NOUNS: dict[Split, tuple[str, ...]] = {
    "train": ("Harbour", "Orchard", "Mirror", "Lantern", "Bridge", "Summer", "Letter", "Island", "Window", "Garden"),
    "test": ("Staircase", "Meadow", "Compass", "Winter", "Anchor"),
}
JOBS = (
    *("painter", "baker", "lawyer", "nurse", "pilot", "teacher", "farmer", "singer", "surgeon", "sailor", "judge", "gardener"),
    *("carpenter", "chemist", "dancer", "engineer", "journalist", "photographer"),
)
PRODUCTS = (
    *("bicycles", "furniture", "glass", "paper", "clocks", "shoes", "cheese", "carpets", "engines", "toys", "pianos", "soap"),
    *("tents", "lamps", "ropes", "boats", "knives", "candles"),
)
PASSAGES: dict[Kind, tuple[str, ...]] = {
    "town": (
        "{name} is a town on the river {river}. The mayor of {name} is {mayor}.",
        "The town of {name} lies on the river {river}. Its mayor is {mayor}.",
        "{mayor} is the mayor of {name}, a town through which the river {river} flows.",
    ),
    "company": (
        "{name} makes {product} in {seat}. It was founded by {founder}.",
        "{name} was founded by {founder}. The company is based in {seat} and makes {product}.",
        "{founder} founded {name}, which is based in {seat} and makes {product}.",
    ),
    "person": (
        "{name} is a {job} who was born in {birthplace} and works for {employer}.",
        "{name} was born in {birthplace} and is a {job} at {employer}.",
        "Born in {birthplace}, {name} works for {employer} as a {job}.",
    ),
    "book": (
        "{name} is a novel by {author}. It was published in {year}.",
        "{name}, published in {year}, was written by {author}.",
        "{author} wrote the novel {name}, which appeared in {year}.",
    ),
}


def make_world(split: Split) -> list[Entity]:
    """Generate the half of one split."""
    rng = random.Random(f"world:{split}")  # noqa: S311  # not for secrets
    size = SIZES[split]
    towns = _invented("town", split, size["town"])
    rivers = _invented("river", split, size["town"] // 2)
    surnames = _invented("surname", split, size["person"] * 2 // 3)
    stems = _invented("company", split, size["company"])
    people = _different(size["person"], lambda: f"{rng.choice(FIRST_NAMES[split])} {rng.choice(surnames)}")
    companies = [f"{stem} {rng.choice(FIRMS[split])}" for stem in stems]
    books = _different(size["book"], lambda: f"The {rng.choice(ADJECTIVES[split])} {rng.choice(NOUNS[split])}")
    facts: list[tuple[str, Kind, dict[str, str]]] = [
        *((name, "town", {"river": rng.choice(rivers), "mayor": rng.choice(people)}) for name in towns),
        *(
            (name, "company", {"founder": rng.choice(people), "seat": rng.choice(towns), "product": rng.choice(PRODUCTS)})
            for name in companies
        ),
        *(
            (name, "person", {"birthplace": rng.choice(towns), "job": rng.choice(JOBS), "employer": rng.choice(companies)})
            for name in people
        ),
        *((name, "book", {"author": rng.choice(people), "year": str(rng.randint(1880, 2019))}) for name in books),
    ]
    return [
        Entity(name, kind, relations, _written(rng.choice(PASSAGES[kind]).format(name=name, **relations)))
        for name, kind, relations in facts
    ]


def world_file() -> bytes:
    """Return the data file: both halves as JSON, one entity per line."""
    halves: list[str] = []
    for split in SIZES:
        entities = ",\n".join(msgspec.json.encode(entity).decode() for entity in make_world(split))
        halves.append(f'"{split}": [\n{entities}\n]')
    return ("{\n" + ",\n".join(halves) + "\n}\n").encode()


def _invented(kind: str, split: Split, count: int) -> list[str]:
    """Return names of one kind: the first two thirds of a fixed order for one split, the rest for the other."""
    every = [f"{stem}{ending}" for stem in STEMS for ending in ENDINGS[kind]]
    random.Random(f"names:{kind}").shuffle(every)  # noqa: S311
    cut = len(every) * 2 // 3
    return (every[:cut] if split == "train" else every[cut:])[:count]


def _different(count: int, make: Callable[[], str]) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names[make()] = None
    return list(names)


def _written(text: str) -> str:
    """Replace `a engineer` with `an engineer`."""
    return text.replace(" a engineer", " an engineer")


if __name__ == "__main__":
    FILE.write_bytes(world_file())
