"""Splits a query into words as SQLite does, and bounds its expansion by common table expressions."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

PIECES = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)|[().]|[0-9A-Za-z_$\x80-\U0010ffff]+""", re.DOTALL
)
"""Matches texts, quoted names, comments, parentheses, dots, and words."""
COMMENTS = ("--", "/*")


def words(query: str) -> list[str]:
    """Return the tokens without comments, operators, and commas."""
    return [piece for piece in PIECES.findall(query) if not piece.startswith(COMMENTS)]


def expanded_words(query: str) -> int:
    """Return an upper bound for the words of a query after SQLite expands its common table expressions.

    SQLite expands them while preparing the query, before any time or memory limit applies. A chain whose links each name the previous one
    twice doubles with every link. The bound multiplies the counts of all names.
    """
    pieces = [_plain(piece) for piece in words(query)]
    named = Counter(piece for i, piece in enumerate(pieces) if pieces[i + 1 : i + 2] != ["."])  # before a dot, the name qualifies a column
    return len(pieces) * math.prod(max(1, named[name] - 1) for name in set(_defined(pieces)))


def _plain(piece: str) -> str:
    """Return a name without quotes, in lowercase. SQLite accepts texts as names, and folds ASCII letters only."""
    if piece[0] in "'\"`[":
        piece = piece[1:-1].replace(piece[0] * 2, piece[0])
    return piece.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def _defined(pieces: list[str]) -> Iterator[str]:
    """Return the names before `AS (`, `AS MATERIALIZED (`, and similar, with or without a column list."""
    for i, piece in enumerate(pieces):
        after = [word for word in pieces[i + 1 : i + 4] if word not in ("not", "materialized")]
        if piece != "as" or i == 0 or after[:1] != ["("]:
            continue
        name, depth = i - 1, 0
        while name > 0 and (pieces[name] == ")" or depth):
            depth += {")": 1, "(": -1}.get(pieces[name], 0)
            name -= 1
        yield pieces[name]
