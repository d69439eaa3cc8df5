"""What the generated questions ask, and the query that answers each.

Placeholders: `{T}` a table (a plural), `{thing}` one of its rows in words, `{N}` its naming column and `{NV}` one of its names, `{C}` a
text column and `{V}` one of its values, `{X}` a number column and `{K}` a number. `{P}` is the table above it, with `{parent}`, `{PN}` and
`{PV}`; `{fk}` is the column of `{T}` that holds the `id` of a row of `{P}`. `{F}` is an aggregate and `{word}` its name; `{D}` and `{most}`
a direction.
"""

# ruff: noqa: S608  # templates of queries, filled with names of ours
from __future__ import annotations

from dataclasses import dataclass

JOIN = "{T} JOIN {P} ON {T}.{fk} = {P}.id"


@dataclass(frozen=True, slots=True)
class Form:
    """One kind of question."""

    query: str
    phrasings: tuple[str, ...]
    unique: bool = False
    """Whether the values of `{X}` must differ, so that an order has no ties."""


FORMS = (
    # one table
    Form("SELECT count(*) FROM {T}", ("How many {T} are there?", "Count the {T}.", "What is the total number of {T}?")),
    Form(
        "SELECT count(*) FROM {T} WHERE {C} = '{V}'",
        ("How many {T} have the {C} {V}?", "Count the {T} whose {C} is {V}.", "What is the number of {T} with {C} {V}?"),
    ),
    Form(
        "SELECT count(*) FROM {T} WHERE {X} > {K}",
        (
            "How many {T} have a {X} above {K}?",
            "Count the {T} with {X} greater than {K}.",
            "What is the number of {T} whose {X} is over {K}?",
        ),
    ),
    Form(
        "SELECT {N} FROM {T} WHERE {C} = '{V}'",
        (
            "List the {N} of the {T} whose {C} is {V}.",
            "Which {T} have the {C} {V}? Give the {N}.",
            "Show the {N} of all {T} with {C} {V}.",
        ),
    ),
    Form(
        "SELECT {N} FROM {T} WHERE {X} < {K}",
        (
            "List the {N} of the {T} with {X} below {K}.",
            "Which {T} have a {X} under {K}? Give the {N}.",
            "Show the {N} of all {T} whose {X} is less than {K}.",
        ),
    ),
    Form(
        "SELECT {X} FROM {T} WHERE {N} = '{NV}'",
        ("What is the {X} of the {thing} {NV}?", "Give the {X} of {NV}.", "Which {X} does the {thing} {NV} have?"),
    ),
    Form(
        "SELECT {F}({X}) FROM {T}",
        ("What is the {word} {X} of all {T}?", "Give the {word} {X} of the {T}.", "Find the {word} {X} among the {T}."),
    ),
    Form(
        "SELECT {N} FROM {T} ORDER BY {X} {D} LIMIT 1",
        (
            "Which {thing} has the {most} {X}? Give the {N}.",
            "What is the {N} of the {thing} with the {most} {X}?",
            "Show the {N} of the {thing} whose {X} is the {most}.",
        ),
        unique=True,
    ),
    Form(
        "SELECT {N} FROM {T} ORDER BY {X} {D}",
        (
            "List the {N} of all {T}, {most} {X} first.",
            "Sort the {T} by {X}, {most} first, and give the {N}.",
            "Show the {N} of every {thing} ordered by {X}, starting with the {most}.",
        ),
        unique=True,
    ),
    Form(
        "SELECT {C}, count(*) FROM {T} GROUP BY {C}",
        ("How many {T} are there for each {C}?", "Count the {T} of each {C}.", "For every {C}, show the number of {T}."),
    ),
    Form(
        "SELECT DISTINCT {C} FROM {T}",
        (
            "Which different {C} values do the {T} have?",
            "List each {C} of the {T} once.",
            "Show all distinct {C} values of the {T}.",
        ),
    ),
    # two tables
    Form(
        f"SELECT count(*) FROM {JOIN} WHERE {{P}}.{{PN}} = '{{PV}}'",
        (
            "How many {T} does the {parent} {PV} have?",
            "Count the {T} of the {parent} {PV}.",
            "What is the number of {T} that belong to the {parent} {PV}?",
        ),
    ),
    Form(
        f"SELECT {{T}}.{{N}} FROM {JOIN} WHERE {{P}}.{{PN}} = '{{PV}}'",
        (
            "List the {N} of the {T} of the {parent} {PV}.",
            "Which {T} does the {parent} {PV} have? Give the {N}.",
            "Show the {N} of all {T} that belong to the {parent} {PV}.",
        ),
    ),
    Form(
        f"SELECT {{P}}.{{PN}} FROM {JOIN} WHERE {{T}}.{{N}} = '{{NV}}'",
        (
            "To which {parent} does the {thing} {NV} belong? Give the {PN}.",
            "What is the {PN} of the {parent} of the {thing} {NV}?",
            "Show the {PN} of the {parent} that has the {thing} {NV}.",
        ),
    ),
    Form(
        f"SELECT {{P}}.{{PN}}, count(*) FROM {JOIN} GROUP BY {{P}}.id",
        (
            "For each {parent} with {T}, give its {PN} and how many it has.",
            "Count the {T} of each {parent} that has any, with its {PN}.",
            "Show the {PN} of every {parent} that has {T}, and their number.",
        ),
    ),
    Form(
        "SELECT {PN} FROM {P} WHERE id NOT IN (SELECT {fk} FROM {T})",
        (
            "Which {P} have no {T}? Give the {PN}.",
            "List the {PN} of the {P} without any {T}.",
            "Show the {PN} of every {parent} that no {thing} belongs to.",
        ),
    ),
)

ROUND = tuple(form for form in FORMS for _ in range(1 if "{P}" in form.query else 3))
"""As often as forms are asked. Of two tables less: a model of 135M parameters rarely gets a join right, and where no sample is right there
is nothing to learn from."""

AGGREGATES = (
    ("max", ("highest", "largest", "maximum")),
    ("min", ("lowest", "smallest", "minimum")),
    ("avg", ("average", "mean")),
    ("sum", ("total", "overall")),
)
"""Function, and words for it."""
DIRECTIONS = (("DESC", ("highest", "largest")), ("ASC", ("lowest", "smallest")))
