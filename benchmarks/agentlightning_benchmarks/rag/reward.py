"""The reward: 0.9 × token F1 + 0.1 × format.

Token F1 follows SQuAD. It compares lowercase words without punctuation and articles, counts repeated words, and takes the best match among
the answer and its aliases. The answer is the text after the last `Answer:`, or else the whole reply. The format is right if the agent
searched and its last reply is one line, `Answer: ...`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

CORRECT, FORMAT = 0.9, 0.1
MARK = "Answer:"
PUNCTUATION = str.maketrans("", "", string.punctuation)


def reward(reply: str, answers: Iterable[str], *, searched: bool) -> float:
    """Return the reward of a run's last reply, between 0 and 1."""
    right = max((token_f1(answered(reply), answer) for answer in answers), default=0.0)
    return CORRECT * right + FORMAT * well_formed(reply, searched=searched)


def answered(reply: str) -> str:
    """Extract the answer from a reply."""
    return reply.rpartition(MARK)[2].strip()


def well_formed(reply: str, *, searched: bool) -> bool:
    """Return True if the format is right."""
    return searched and re.fullmatch(rf"{MARK} \S.*", reply.strip()) is not None and reply.count(MARK) == 1


def normalise(text: str) -> list[str]:
    """Return the words that SQuAD compares."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split()


def token_f1(answer: str, right: str) -> float:
    """Return the harmonic mean of word precision and recall, between 0 and 1. Two answers without any counted word (`A`) match."""
    said_words, right_words = normalise(answer), normalise(right)
    if not said_words or not right_words:
        return float(bool(answer.strip()) and said_words == right_words)
    common = (Counter(said_words) & Counter(right_words)).total()
    return 2 * common / (len(said_words) + len(right_words))
