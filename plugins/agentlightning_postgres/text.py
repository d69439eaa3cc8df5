"""Text in columns. PostgreSQL cannot hold NUL characters or lone surrogates, so columns escape them; all other text stays readable."""

from __future__ import annotations

import re

ESCAPED = re.compile("[\x00\x1a\ud800-\udfff]")
ESCAPE = re.compile("\x1a([0-9a-f]{4})")


def to_column(text: str) -> str:
    """The text with `\\x1a` and four hexadecimal digits in place of each character that PostgreSQL cannot hold."""
    return ESCAPED.sub(lambda match: f"\x1a{ord(match[0]):04x}", text)


def from_column(text: str) -> str:
    """The text that `to_column` wrote."""
    return ESCAPE.sub(lambda match: chr(int(match[1], 16)), text) if "\x1a" in text else text
