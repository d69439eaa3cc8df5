"""Keys and values of replies that have ended, so that the next turn of a conversation computes its new tokens only.

What is kept was computed with the weights of now; whoever changes the weights clears it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Tokens = NDArray[np.int32]


def common(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences share at their beginning."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A sequence, and keys and values of all its tokens, (layers, heads, tokens, dim)."""

    tokens: Tokens
    keys: Tensor
    values: Tensor


class Prefixes:
    """The latest sequences, within a budget of bytes."""

    def __init__(self, token_bytes: int) -> None:
        self._token_bytes = token_bytes
        self._entries: list[Entry] = []  # the least recently used first

    def find(self, tokens: Tokens) -> tuple[int, Entry | None]:
        """The entry that shares most with the beginning of `tokens`, and how many."""
        best, found = 0, None
        for entry in self._entries:
            shared = common(entry.tokens, tokens)
            if shared > best:
                best, found = shared, entry
        return best, found

    def touch(self, entry: Entry) -> None:
        """Count it as used now."""
        self._entries.remove(entry)
        self._entries.append(entry)

    def add(self, tokens: Tokens, read: Any, budget: int) -> None:
        """Keep a sequence, `read` giving its keys and values, unless it is the beginning of one that is kept.

        What it continues is dropped, then the oldest until all fits into `budget` bytes.
        """
        size = len(tokens)
        if not size or size * self._token_bytes > budget:
            self.trim(budget)
            return
        if any(common(entry.tokens, tokens) == size for entry in self._entries):
            return
        self._entries = [entry for entry in self._entries if common(entry.tokens, tokens) < len(entry.tokens)]
        self.trim(budget - size * self._token_bytes)
        keys, values = read(size)
        self._entries.append(Entry(tokens.copy(), keys.clone(), values.clone()))

    def trim(self, budget: int) -> None:
        """Drop the oldest until the rest fits into `budget` bytes."""
        used = self.bytes
        while used > max(0, budget):
            used -= len(self._entries.pop(0).tokens) * self._token_bytes

    def clear(self) -> None:
        self._entries.clear()

    @property
    def bytes(self) -> int:
        return sum(len(entry.tokens) for entry in self._entries) * self._token_bytes
