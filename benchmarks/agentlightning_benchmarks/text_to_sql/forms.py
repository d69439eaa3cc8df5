"""The forms of the generated questions, in `forms.json`: each with phrasings, and the query that answers them.

Placeholders: `{T}` a table (a plural), `{thing}` one of its rows in words, `{N}` its naming column and `{NV}` one of its names, `{C}` a
text column and `{V}` one of its values, `{X}` a number column and `{K}` a number. `{P}` is the table above it, with `{parent}`, `{PN}` and
`{PV}`; `{fk}` is the column of `{T}` that holds the `id` of a row of `{P}`. `{F}` is an aggregate and `{word}` its name; `{D}` and `{most}`
a direction.
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
    """Whether the values of `{X}` must differ, so that an order has no ties."""


class Forms(msgspec.Struct, frozen=True):
    """Every form, and the words that fill them."""

    forms: tuple[Form, ...]
    aggregates: tuple[tuple[str, tuple[str, ...]], ...]
    """SQL function, and words for it."""
    directions: tuple[tuple[str, tuple[str, ...]], ...]
    """SQL keyword, and words for the first row in that order."""

    @property
    def round(self) -> list[Form]:
        """The forms as often as a round asks them: those on one table three times, joins once. A model of 135M parameters rarely gets a
        join right, and a question without a right sample teaches nothing."""
        return [form for form in self.forms for _ in range(1 if "{P}" in form.query else 3)]


@cache
def read_forms() -> Forms:
    """Return the content of the file."""
    return msgspec.json.decode(Path(__file__).with_name("forms.json").read_bytes(), type=Forms)
