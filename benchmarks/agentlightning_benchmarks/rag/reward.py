"""The reward: 0.9 x token F1 + 0.1 x format.

Token F1 is SQuAD's: lower case, without punctuation and the articles a, an, the; words in common, counted as often as both have them;
the best over the answer and its aliases. What was answered is what follows the last `Answer:`, or the whole reply where there is none.
The format is right when the agent has searched and its last reply is one line, `Answer: ` with something after it.
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
    """From 0 to 1, for the last reply of a run."""
    right = max((token_f1(answered(reply), answer) for answer in answers), default=0.0)
    return CORRECT * right + FORMAT * well_formed(reply, searched=searched)


def answered(reply: str) -> str:
    """What a reply gives as the answer."""
    return reply.rpartition(MARK)[2].strip()


def well_formed(reply: str, *, searched: bool) -> bool:
    """Whether the format is right."""
    return searched and re.fullmatch(rf"{MARK} \S.*", reply.strip()) is not None and reply.count(MARK) == 1


def normalise(text: str) -> list[str]:
    """The words that SQuAD compares."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split()


def token_f1(answer: str, right: str) -> float:
    """Harmonic mean of precision and recall of words, 0 to 1. Of answers without a word that counts (`A`): 1 when both are such."""
    said_words, right_words = normalise(answer), normalise(right)
    if not said_words or not right_words:
        return float(bool(answer.strip()) and said_words == right_words)
    common = (Counter(said_words) & Counter(right_words)).total()
    return 2 * common / (len(said_words) + len(right_words))
