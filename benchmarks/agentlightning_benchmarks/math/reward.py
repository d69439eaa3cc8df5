"""The reward: 1 where the answer equals the right one as a number, else 0."""

from __future__ import annotations

import math
import re

NUMBER = re.compile(r"(?<![\w.,/])-?(?:\$\s?)?-?\d[\d,]*(?:\.\d+)?(?:/[1-9]\d*)?|(?<=[^\w.,/])-?\.\d+")
ANSWER = re.compile(r"answer\s+is|answer:", re.IGNORECASE)


def reward(text: str | None, answer: float | int | str) -> float:
    """`text`: what the agent said last; None: it gave no answer. `answer`: the right one, a number or a text that holds one.

    Commas between thousands, a dollar sign before and any unit or percent sign behind are read over (1,000; $5; 50% is 50), a fraction is
    its value (3/4). An answer given with d decimals is met by what rounds to it; a whole one only by itself.
    """
    number = None if text is None else number_in(text)
    right = number_in(str(answer))
    if number is None or right is None:
        return 0.0
    decimals = len(str(answer).partition(".")[2])
    tolerance = 1e-6 * max(1.0, abs(right)) if not decimals else 0.5 * 10.0**-decimals + 1e-9
    return 1.0 if abs(number - right) <= tolerance else 0.0


def number_in(text: str) -> float | None:
    """The number that a text gives as its answer: the first after the last "answer is", else the last one. None: it has none."""
    marks = list(ANSWER.finditer(text))
    stated = NUMBER.findall(" " + text[marks[-1].end() :]) if marks else []
    numbers = stated[:1] or NUMBER.findall(" " + text)[-1:]
    if not numbers:
        return None
    top, _, bottom = re.sub(r"[,$\s]", "", numbers[0]).partition("/")
    value = float(top.replace("--", "")) / float(bottom or 1)
    return value if math.isfinite(value) else None
