"""Templates of the generated problems. Train and test share no template, name, or object, but the same kinds of calculation."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "test"]

NAMES: dict[Split, list[str]] = {
    "train": [
        "Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Kevin", "Laura", "Mark", "Nina", "Oscar", "Paula",
        "Robert",
    ],
    "test": ["Alice", "Bruno", "Diana", "Felix", "Hannah", "Igor", "Maria", "Peter", "Sofia", "Tom"],
}  # fmt: skip
THINGS: dict[Split, list[str]] = {
    "train": ["apples", "books", "cards", "coins", "eggs", "marbles", "pencils", "shells", "stamps", "stickers", "toys", "flowers"],
    "test": ["oranges", "balloons", "buttons", "cookies", "pens", "stones", "tickets", "candles"],
}
TEMPLATES: dict[Split, list[tuple[str, str]]] = {
    "train": [
        ("{a}+{b}", "{N} has {a} {X} and buys {b} more. How many {X} does {N} have now?"),
        ("{a}+{b}", "There are {a} {X} in one box and {b} {X} in another box. How many {X} are there in total?"),
        ("{s}-{b}", "{N} has {s} {X} and gives {b} to {M}. How many {X} does {N} have left?"),
        ("{s}-{b}", "A rope is {s} meters long. {N} cuts off {b} meters. How many meters are left?"),
        ("{p}*{q}", "There are {p} boxes with {q} {X} in each box. How many {X} are there in total?"),
        ("{q}*{p}", "{N} buys {q} {X}. Each costs {p} dollars. How many dollars does {N} pay?"),
        ("{m}/{p}", "{N} shares {m} {X} equally among {p} friends. How many {X} does each friend get?"),
        ("{a}+{b}+{c}", "{N} found {a} {X} on Monday, {b} on Tuesday and {c} on Friday. How many {X} did {N} find in all?"),
        ("{a}+{b}-{c}", "{N} has {a} {X}, buys {b} more and gives {c} to {M}. How many {X} does {N} have now?"),
        ("{a}+{b}-{c}", "A bus has {a} people. {b} get on and {c} get off. How many people are on the bus?"),
        ("{s}-{b}-{c}", "There were {s} {X} in a shop. {b} were sold on Monday and {c} on Tuesday. How many {X} remain?"),
        ("{s}-{b}-{c}", "{N} has {s} dollars, spends {b} on food and {c} on a coat. How many dollars are left?"),
        ("{p}*{q}+{b}", "{N} has {p} boxes with {q} {X} each and {b} {X} on the table. How many {X} does {N} have?"),
        ("{p}*{q}+{b}", "{N} earns {q} dollars a day for {p} days and gets {b} dollars as a gift. How many dollars is that?"),
        ("{p}*{q}-{b}", "{N} fills {p} jars with {q} {X} each, then eats {b} of them. How many {X} are left?"),
        ("{p}*{q}-{b}", "{N} reads {q} pages a day for {p} days, but {b} pages were blank. How many pages had text?"),
        ("({a}+{b})*{p}", "Each of {p} teams has {a} girls and {b} boys. How many children are there in all?"),
        ("({a}+{b})*{p}", "{N} walks {a} minutes in the morning and {b} in the evening. How many minutes is that in {p} days?"),
        ("({s}-{b})/{p}", "{N} has {s} {X}, keeps {b} and shares the rest among {p} friends. How many {X} does each friend get?"),
        ("({s}-{b})/{p}", "Of {s} liters of water, {b} are used. The rest fills {p} equal tanks. How many liters are in each tank?"),
        ("{p}*{q}+{r}*{t}", "{N} buys {p} {X} for {q} dollars each and {r} pens for {t} dollars each. How many dollars does {N} pay?"),
        ("{m}/{p}+{b}", "{N} takes one of {p} equal parts of {m} {X} and finds {b} more. How many {X} does {N} have?"),
    ],
    "test": [
        ("{a}+{b}", "{N} collected {a} {X} and {M} collected {b} {X}. How many {X} did they collect together?"),
        ("{s}-{b}", "{N} had {s} {X} and lost {b} of them. How many {X} are left?"),
        ("{p}*{q}", "Each of {p} children gets {q} {X}. How many {X} do they get in total?"),
        ("{m}/{p}", "{m} {X} are packed into {p} bags with the same number in each. How many {X} are in one bag?"),
        ("{a}+{b}+{c}", "{N} picked {a} {X}, {M} picked {b} and {O} picked {c}. How many {X} did they pick in all?"),
        ("{a}+{b}-{c}", "{N} baked {a} {X} and {M} baked {b}. They sold {c}. How many {X} do they still have?"),
        ("{s}-{b}-{c}", "A train of {s} kilograms unloads {b} kilograms, then {c} kilograms. How many kilograms remain?"),
        ("{p}*{q}+{b}", "A hall has {p} rows of {q} chairs and {b} chairs at the wall. How many chairs are in the hall?"),
        ("{p}*{q}-{b}", "{N} ordered {p} packs of {q} {X}, and {b} arrived broken. How many {X} were fine?"),
        ("({a}+{b})*{p}", "A ticket costs {a} dollars and a meal {b} dollars. How many dollars do {p} people pay for both?"),
        ("({s}-{b})/{p}", "{N} saved {s} dollars, paid {b} and split the rest among {p} children. How many dollars per child?"),
        ("{p}*{q}+{r}*{t}", "{N} sends {p} letters of {q} grams and {r} letters of {t} grams. How many grams is that in all?"),
        ("{s}-{p}*{q}", "{N} had {s} {X} and gave {q} to each of {p} children. How many {X} are left?"),
        ("{m}/{p}+{b}", "{m} {X} are dealt equally to {p} players. {N}, one of them, then wins {b} more. How many {X} has {N}?"),
    ],
}  # fmt: skip
