"""The reward: 1 if the answer equals the correct number, else 0."""

from __future__ import annotations

import math
import re

NUMBER = re.compile(r"(?<![\w./])-?(?:\$\s?)?-?(?:\d{1,3}(?:,\d{3})+(?!\d|,\d)|\d+)(?:\.\d+)?(?:/[1-9]\d*)?|(?<=[^\w.,/])-?\.\d+")
"""A comma belongs to a number between groups of three digits. Other commas stand between numbers."""
ANSWER = re.compile(r"answer\s+is|answer:", re.IGNORECASE)


def reward(text: str | None, answer: float | int | str) -> float:
    """Return 1 if the answer in `text` matches `answer`, else 0.

    `text` is the agent's last message, or None without one. `answer` is a number, or a text with one. Thousands separators, a leading
    dollar sign, and a trailing unit or percent sign are ignored (1,000; $5; 50% is 50). Fractions are evaluated (3/4). If `answer` has
    decimals, an answer that rounds to it also matches. Integers must match exactly.
    """
    number = None if text is None else number_in(text)
    right = number_in(str(answer))
    if number is None or right is None:
        return 0.0
    decimals = len(str(answer).partition(".")[2])
    tolerance = 1e-6 * max(1.0, abs(right)) if not decimals else 0.5 * 10.0**-decimals + 1e-9
    return 1.0 if abs(number - right) <= tolerance else 0.0


def number_in(text: str) -> float | None:
    """Return the number after the last "answer is", else the last number. Return None without a number."""
    marks = list(ANSWER.finditer(text))
    stated = NUMBER.findall(" " + text[marks[-1].end() :]) if marks else []
    numbers = stated[:1] or NUMBER.findall(" " + text)[-1:]
    if not numbers:
        return None
    top, _, bottom = re.sub(r"[,$\s]", "", numbers[0]).partition("/")
    value = float(top.replace("--", "")) / float(bottom or 1)
    return value if math.isfinite(value) else None
