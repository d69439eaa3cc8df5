"""What the generated questions ask, and the query that answers each. Train and test share forms, and no phrasing.

Placeholders: `{T}` a table (`{things}`, `{thing}` in words), `{N}` its naming column and `{NV}` one of its names, `{C}` a text column and
`{V}` one of its values, `{X}` a number column and `{K}` a number. `{P}` is the table above it, with `{parents}`, `{parent}`, `{PN}`,
`{PV}`, `{PC}`, `{PW}` (a value of `{PC}`), its key `{pid}`, and `{fk}`, the column of `{T}` that holds it. `{Q}`, `{QN}`, `{QV}`, `{qid}`
and `{pfk}` are the same one table higher. `{F}` is an aggregate and `{word}` its name; `{D}` and `{most}` a direction.
"""

# ruff: noqa: S608  # templates of queries, filled with names of ours
from __future__ import annotations

from dataclasses import dataclass

JOIN = "{T} JOIN {P} ON {T}.{fk} = {P}.{pid}"


@dataclass(frozen=True, slots=True)
class Form:
    """One kind of question."""

    query: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    unique: bool = False
    """Whether the values of `{X}` must differ, so that an order has no ties."""


FORMS = (
    # one table
    Form("SELECT count(*) FROM {T}", ("How many {things} are there?", "Count the {things}."), ("What is the total number of {things}?",)),
    Form(
        "SELECT count(*) FROM {T} WHERE {C} = '{V}'",
        ("How many {things} have the {C} {V}?", "Count the {things} whose {C} is {V}."),
        ("What is the number of {things} with {C} {V}?",),
    ),
    Form(
        "SELECT count(*) FROM {T} WHERE {X} > {K}",
        ("How many {things} have a {X} above {K}?", "Count the {things} with {X} greater than {K}."),
        ("What is the number of {things} whose {X} is over {K}?",),
    ),
    Form(
        "SELECT {N} FROM {T} WHERE {C} = '{V}'",
        ("List the {N} of the {things} whose {C} is {V}.", "Which {things} have the {C} {V}? Give the {N}."),
        ("Show the {N} of all {things} with {C} {V}.",),
    ),
    Form(
        "SELECT {N} FROM {T} WHERE {X} < {K}",
        ("List the {N} of the {things} with {X} below {K}.", "Which {things} have a {X} under {K}? Give the {N}."),
        ("Show the {N} of all {things} whose {X} is less than {K}.",),
    ),
    Form(
        "SELECT {X} FROM {T} WHERE {N} = '{NV}'",
        ("What is the {X} of the {thing} {NV}?", "Give the {X} of {NV}."),
        ("Which {X} does the {thing} {NV} have?",),
    ),
    Form(
        "SELECT {F}({X}) FROM {T}",
        ("What is the {word} {X} of all {things}?", "Give the {word} {X} of the {things}."),
        ("Find the {word} {X} among the {things}.",),
    ),
    Form(
        "SELECT {F}({X}) FROM {T} WHERE {C} = '{V}'",
        ("What is the {word} {X} of the {things} whose {C} is {V}?", "Give the {word} {X} of the {things} with {C} {V}."),
        ("Among {things} with the {C} {V}, what is the {word} {X}?",),
    ),
    Form(
        "SELECT {N} FROM {T} ORDER BY {X} {D} LIMIT 1",
        ("Which {thing} has the {most} {X}? Give the {N}.", "What is the {N} of the {thing} with the {most} {X}?"),
        ("Show the {N} of the {thing} whose {X} is the {most}.",),
        unique=True,
    ),
    Form(
        "SELECT {N} FROM {T} ORDER BY {X} {D}",
        ("List the {N} of all {things}, {most} {X} first.", "Sort the {things} by {X}, {most} first, and give the {N}."),
        ("Show the {N} of every {thing} ordered by {X}, starting with the {most}.",),
        unique=True,
    ),
    Form(
        "SELECT {C}, count(*) FROM {T} GROUP BY {C}",
        ("How many {things} are there for each {C}?", "Count the {things} of each {C}."),
        ("For every {C}, show the number of {things}.",),
    ),
    Form(
        "SELECT {C}, {F}({X}) FROM {T} GROUP BY {C}",
        ("What is the {word} {X} of the {things} for each {C}?", "Give each {C} and the {word} {X} of its {things}."),
        ("For every {C}, show the {word} {X} of the {things}.",),
    ),
    Form(
        "SELECT {N} FROM {T} WHERE {C} = '{V}' AND {X} > {K}",
        ("Which {things} have the {C} {V} and a {X} above {K}? Give the {N}.", "List the {N} of the {V} {things} with {X} over {K}."),
        ("Show the {N} of all {things} with {C} {V} whose {X} is more than {K}.",),
    ),
    Form(
        "SELECT DISTINCT {C} FROM {T}",
        ("Which different {C} values do the {things} have?", "List each {C} of the {things} once."),
        ("Show all distinct {C} values of the {things}.",),
    ),
    Form(
        "SELECT {N} FROM {T} WHERE {X} > (SELECT avg({X}) FROM {T})",
        ("Which {things} have a {X} above the average? Give the {N}.", "List the {N} of the {things} with more than average {X}."),
        ("Show the {N} of all {things} whose {X} is higher than the mean {X}.",),
    ),
    # two tables
    Form(
        f"SELECT count(*) FROM {JOIN} WHERE {{P}}.{{PN}} = '{{PV}}'",
        ("How many {things} does the {parent} {PV} have?", "Count the {things} of the {parent} {PV}."),
        ("What is the number of {things} that belong to the {parent} {PV}?",),
    ),
    Form(
        f"SELECT {{T}}.{{N}} FROM {JOIN} WHERE {{P}}.{{PN}} = '{{PV}}'",
        ("List the {N} of the {things} of the {parent} {PV}.", "Which {things} does the {parent} {PV} have? Give the {N}."),
        ("Show the {N} of all {things} that belong to the {parent} {PV}.",),
    ),
    Form(
        f"SELECT {{P}}.{{PN}} FROM {JOIN} WHERE {{T}}.{{N}} = '{{NV}}'",
        ("To which {parent} does the {thing} {NV} belong? Give the {PN}.", "What is the {PN} of the {parent} of the {thing} {NV}?"),
        ("Show the {PN} of the {parent} that has the {thing} {NV}.",),
    ),
    Form(
        f"SELECT count(*) FROM {JOIN} WHERE {{P}}.{{PC}} = '{{PW}}'",
        ("How many {things} belong to a {parent} with {PC} {PW}?", "Count the {things} of all {parents} whose {PC} is {PW}."),
        ("What is the number of {things} of the {parents} with the {PC} {PW}?",),
    ),
    Form(
        f"SELECT {{T}}.{{N}} FROM {JOIN} WHERE {{P}}.{{PC}} = '{{PW}}'",
        (
            "List the {N} of the {things} that belong to a {parent} with {PC} {PW}.",
            "Which {things} have a {parent} whose {PC} is {PW}? Give the {N}.",
        ),
        ("Show the {N} of all {things} of {parents} with the {PC} {PW}.",),
    ),
    Form(
        f"SELECT {{F}}({{T}}.{{X}}) FROM {JOIN} WHERE {{P}}.{{PN}} = '{{PV}}'",
        ("What is the {word} {X} of the {things} of the {parent} {PV}?", "Give the {word} {X} of all {things} that the {parent} {PV} has."),
        ("Among the {things} that belong to the {parent} {PV}, find the {word} {X}.",),
    ),
    Form(
        f"SELECT {{P}}.{{PN}}, count(*) FROM {JOIN} GROUP BY {{P}}.{{pid}}",
        (
            "For each {parent} with {things}, give its {PN} and how many it has.",
            "Count the {things} of each {parent} that has any, with its {PN}.",
        ),
        ("Show the {PN} of every {parent} that has {things}, and their number.",),
    ),
    Form(
        f"SELECT {{P}}.{{PN}} FROM {JOIN} GROUP BY {{P}}.{{pid}} ORDER BY count(*) DESC LIMIT 1",
        ("Which {parent} has the most {things}? Give the {PN}.", "What is the {PN} of the {parent} with the most {things}?"),
        ("Show the {PN} of the {parent} that the largest number of {things} belong to.",),
    ),
    Form(
        "SELECT {PN} FROM {P} WHERE {pid} NOT IN (SELECT {fk} FROM {T})",
        ("Which {parents} have no {things}? Give the {PN}.", "List the {PN} of the {parents} without any {things}."),
        ("Show the {PN} of every {parent} that no {thing} belongs to.",),
    ),
    Form(
        f"SELECT DISTINCT {{P}}.{{PN}} FROM {JOIN} WHERE {{T}}.{{C}} = '{{V}}'",
        (
            "Which {parents} have {things} with the {C} {V}? Give each {PN} once.",
            "List once the {PN} of each {parent} with a {thing} whose {C} is {V}.",
        ),
        ("Show the distinct {PN} of all {parents} with some {thing} of {C} {V}.",),
    ),
    # three tables
    Form(
        f"SELECT count(*) FROM {JOIN} JOIN {{Q}} ON {{P}}.{{pfk}} = {{Q}}.{{qid}} WHERE {{Q}}.{{QN}} = '{{QV}}'",
        ("How many {things} do the {parents} of {QV} have?", "Count the {things} in all {parents} of {QV}."),
        ("What is the number of {things} of the {parents} that belong to {QV}?",),
    ),
)

AGGREGATES = (
    ("max", ("highest", "largest"), ("greatest", "maximum")),
    ("min", ("lowest", "smallest"), ("least", "minimum")),
    ("avg", ("average", "average"), ("mean", "average")),
    ("sum", ("total", "summed"), ("overall", "total")),
)
"""Function, words of train, words of test."""
DIRECTIONS = (("DESC", ("highest", "largest"), ("greatest", "maximum")), ("ASC", ("lowest", "smallest"), ("least", "minimum")))
