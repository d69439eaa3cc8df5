"""Reads the reply of a judge. A reply that leaves room for doubt is unreadable, and never a number that was guessed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, cast

from agentlightning.types import JSON

SCORE_LINE = re.compile(r"[\s*_#`]*(?:score[\s*_:=`]*)?(-?\d+(?:\.\d+)?)[\s.*_`]*", re.IGNORECASE)
FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
SHOWN = 200
"""Characters of a reply in messages."""


class Unreadable(Exception):
    """A reply from which no score can be read."""


def read_score(text: str, low: float, high: float) -> dict[str, JSON]:
    """Return `score` and `reason` of a reply.

    The reply is a JSON object with a `score`, perhaps in a code block. Otherwise its last line is the score alone, as in `Score: 7`. The
    score lies within the scale. Text before `</think>` does not count. Raises `Unreadable`.
    """
    text = text.rpartition("</think>")[2].strip()
    reply = _object(text)
    if reply is None:
        lines = text.splitlines()
        match = SCORE_LINE.fullmatch(lines[-1]) if lines else None
        if match is None:
            raise Unreadable(f"{text[-SHOWN:]!r} is no JSON object with a score, and does not end with a line of the score alone")
        reply = {"score": float(match[1]), "reason": "\n".join(lines[:-1])}
    score = _number(reply.get("score"))
    if score is None:
        raise Unreadable(f"its score is {reply.get('score')!r:.80}, which is no number")
    if not low <= score <= high:
        raise Unreadable(f"its score is {score:g}, which is not from {low:g} to {high:g}")
    return {"score": score, "reason": _reason(reply)}


def read_ranks(text: str, labels: Sequence[str]) -> dict[str, JSON]:
    """Return `ranks` (by label, 1 for the best; equal ranks are ties) and `reason` of a reply. Raises `Unreadable`."""
    text = text.rpartition("</think>")[2].strip()
    reply = _object(text)
    if reply is None:
        raise Unreadable(f"{text[-SHOWN:]!r} is no JSON object")
    ranks: Any = reply.get("ranks")
    if not isinstance(ranks, dict):
        raise Unreadable(f"its ranks are {ranks!r:.80}, which is no object")
    read = {str(label): _number(rank) for label, rank in cast("dict[Any, Any]", ranks).items()}
    if read.keys() != set(labels) or None in read.values():
        raise Unreadable(f"its ranks are {ranks!r:.200}, but {', '.join(labels)} need one number each")
    return {"ranks": cast(JSON, read), "reason": _reason(reply)}


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, or that its only code block is; None: there is none."""
    blocks = FENCED.findall(text)
    for candidate in (text, *(blocks if len(blocks) == 1 else ())):
        try:
            value: Any = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return cast("dict[str, Any]", value)
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _reason(reply: dict[str, Any]) -> str:
    reason = reply.get("reason")
    return reason.strip() if isinstance(reason, str) else ""
