"""The question forms, stored in `forms.json`: each has phrasings and the query that answers them.

Placeholders: `{T}` is a table (plural), `{thing}` the word for one of its rows, `{N}` its name column, and `{NV}` one of its names. `{C}`
is a text column and `{V}` one of its values. `{X}` is a number column and `{K}` a number. `{P}` is the table above, with `{parent}`,
`{PN}`, and `{PV}`. `{fk}` is the column of `{T}` that references `{P}`. `{F}` is an aggregate and `{word}` its name. `{D}` is a direction
and `{most}` its word.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec


class Form(msgspec.Struct, frozen=True):
    """One kind of question."""

    query: str
    phrasings: tuple[str, ...]
    unique: bool = False
    """Whether the values of `{X}` must be unique, so that ordering has no ties."""


class Forms(msgspec.Struct, frozen=True):
    """All forms and their fill-in words."""

    forms: tuple[Form, ...]
    aggregates: tuple[tuple[str, tuple[str, ...]], ...]
    """SQL function, and words for it."""
    directions: tuple[tuple[str, tuple[str, ...]], ...]
    """SQL keyword, and words for the first row in that order."""

    @property
    def round(self) -> list[Form]:
        """Return the forms of one round: single-table forms three times, joins once.

        A 135M model rarely gets a join right, and a group without a correct sample teaches nothing.
        """
        return [form for form in self.forms for _ in range(1 if "{P}" in form.query else 3)]


@cache
def read_forms() -> Forms:
    """Return the content of the file."""
    return msgspec.json.decode(Path(__file__).with_name("forms.json").read_bytes(), type=Forms)
