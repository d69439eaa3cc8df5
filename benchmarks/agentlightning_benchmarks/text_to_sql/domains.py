"""The words of the generated databases, stored in `vocabulary.json`.

Train and test share no table, no specific column, and no text value. A domain is a chain of tables: each row belongs to one row of the
table above. A table is `plural singular | column: kind | ...`. The first column names a row, and its values are unique. A kind is a number
range (`3-90`), a list of texts (`red, green`), or a made-up `word` or `person`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

Split = Literal["train", "test"]


class Vocabulary(msgspec.Struct, frozen=True):
    """The words of one split."""

    domains: dict[str, list[str]]
    """Tables by domain name."""
    syllables: list[str]
    """Syllables of a `word`."""
    first_names: list[str]
    last_names: list[str]


@cache
def vocabulary() -> dict[Split, Vocabulary]:
    """Return the words of each split."""
    return msgspec.json.decode(Path(__file__).with_name("vocabulary.json").read_bytes(), type=dict[Split, Vocabulary])
