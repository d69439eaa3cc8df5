"""The words of a query, as SQLite separates them, and how far its common table expressions can swell it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

PIECES = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)|[().]|[0-9A-Za-z_$\x80-\U0010ffff]+""", re.DOTALL
)
"""Texts and quoted names, comments, parentheses, dots and words."""
COMMENTS = ("--", "/*")


def words(query: str) -> list[str]:
    """The pieces that are no comments; operators and commas are left out."""
    return [piece for piece in PIECES.findall(query) if not piece.startswith(COMMENTS)]


def expanded_words(query: str) -> int:
    """At most so many words has a query once SQLite has put each common table expression in the places that name it.

    It does that as it prepares a query, before any limit of time or memory acts, and a chain in which each names the one before it twice
    doubles with every link. A name stands at most as often as the product, over all of them, of how often each is named.
    """
    pieces = [_plain(piece) for piece in words(query)]
    named = Counter(piece for i, piece in enumerate(pieces) if pieces[i + 1 : i + 2] != ["."])  # before a dot it names a column's table
    return len(pieces) * math.prod(max(1, named[name] - 1) for name in set(_defined(pieces)))


def _plain(piece: str) -> str:
    """A name without its quotes and its case; SQLite takes texts for names where it expects one, and folds ASCII letters only."""
    if piece[0] in "'\"`[":
        piece = piece[1:-1].replace(piece[0] * 2, piece[0])
    return piece.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def _defined(pieces: list[str]) -> Iterator[str]:
    """The names before `AS (`, `AS MATERIALIZED (` and the like, and before a list of columns before these."""
    for i, piece in enumerate(pieces):
        after = [word for word in pieces[i + 1 : i + 4] if word not in ("not", "materialized")]
        if piece != "as" or i == 0 or after[:1] != ["("]:
            continue
        name, depth = i - 1, 0
        while name > 0 and (pieces[name] == ")" or depth):
            depth += {")": 1, "(": -1}.get(pieces[name], 0)
            name -= 1
        yield pieces[name]
