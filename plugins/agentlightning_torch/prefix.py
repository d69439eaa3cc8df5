"""The prefix cache: keys and values of finished replies, so that a conversation's next turn computes only its new tokens.

All entries belong to the current weights. A change of the weights clears them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Tokens = NDArray[np.int32]


def common(a: Tokens, b: Tokens) -> int:
    """Return the length of the common prefix of two sequences."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def shared_prefixes(sequences: Sequence[Tokens], least: int) -> list[tuple[list[int], int]]:
    """Return groups of sequences with a common prefix of at least `least` tokens, as (their numbers, its length).

    A sequence is in one group at most. Of groups by the first `least` tokens, twice as many, and so on, the ones that save most are taken:
    all sequences share a system prompt, and those of one task share more.
    """
    best: list[tuple[list[int], int]] = []
    most = 0
    while any(len(sequence) >= least for sequence in sequences):
        groups: dict[bytes, list[int]] = {}
        for number, sequence in enumerate(sequences):
            if len(sequence) >= least:
                groups.setdefault(sequence[:least].tobytes(), []).append(number)
        shared = [
            (numbers, min(common(sequences[numbers[0]], sequences[other]) for other in numbers[1:]))
            for numbers in groups.values()
            if len(numbers) > 1
        ]
        saved = sum((len(numbers) - 1) * length for numbers, length in shared)
        if saved > most:
            best, most = shared, saved
        least *= 2
    return best


@dataclass(frozen=True, slots=True, eq=False)
class CachedPrefix:
    """A sequence with keys and values of all its tokens, (layers, heads, tokens, dim)."""

    tokens: Tokens
    keys: Tensor
    values: Tensor
    policy: str = "main"
    """Keys depend on the adapter, so another policy never uses them."""


class PrefixCache:
    """The latest sequences, within a byte budget."""

    def __init__(self, token_bytes: int) -> None:
        self._token_bytes = token_bytes
        self._entries: list[CachedPrefix] = []  # least recently used first

    def find(self, tokens: Tokens, policy: str = "main") -> tuple[int, CachedPrefix | None]:
        """Return the policy's entry with the longest common prefix, and its length."""
        longest, best = 0, None
        for entry in self._entries:
            if entry.policy != policy:
                continue
            shared = common(entry.tokens, tokens)
            if shared > longest:
                longest, best = shared, entry
        return longest, best

    def touch(self, entry: CachedPrefix) -> None:
        """Mark an entry as used now."""
        self._entries.remove(entry)
        self._entries.append(entry)

    def add(self, tokens: Tokens, read: Any, budget: int, policy: str = "main") -> None:
        """Keep a policy's sequence, unless it is a prefix of an entry of it.

        `read` returns its keys and values. Entries that are its prefixes are dropped, then the oldest, until all fit into `budget` bytes.
        """
        size = len(tokens)
        if not size or size * self._token_bytes > budget:
            self.trim(budget)
            return
        if any(entry.policy == policy and common(entry.tokens, tokens) == size for entry in self._entries):
            return
        self._entries = [e for e in self._entries if e.policy != policy or common(e.tokens, tokens) < len(e.tokens)]
        self.trim(budget - size * self._token_bytes)
        keys, values = read(size)
        self._entries.append(CachedPrefix(tokens.copy(), keys.clone(), values.clone(), policy))

    def trim(self, budget: int) -> None:
        """Drop the oldest entries until the rest fits into `budget` bytes."""
        used = self.bytes
        while used > max(0, budget):
            used -= len(self._entries.pop(0).tokens) * self._token_bytes

    def clear(self) -> None:
        self._entries.clear()

    @property
    def bytes(self) -> int:
        return sum(len(entry.tokens) for entry in self._entries) * self._token_bytes
