"""Cuts a forest into packs: sub-forests in which every token has all its ancestors, and every trained token is trained in exactly one.

A pack names its tokens by their index in the batch. Packs of a token budget, root-to-leaf rows and rows of one transition each are
all packs; they differ in how often they repeat an ancestor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentlightning.types import IntArray, Value

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


_NOTHING: tuple[int, list[int]] = (0, [])


@dataclass(frozen=True, slots=True, eq=False)
class Pack(Value):
    """A sub-forest of a batch. All arrays are (tokens,)."""

    index: IntArray
    """Place of each token in the arrays of the batch, ascending."""
    parent: IntArray
    """Place in this pack of the token before it; -1 at a root."""
    position: IntArray
    end: IntArray
    """One past its last descendant, in this pack."""
    trained: Bools
    """Whether this pack trains the token; elsewhere it is context."""

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Runs of tokens without a branch between them, depth first. All arrays are (segments,)."""

    first: Ints
    length: Ints
    parent: Ints
    """-1 at a root."""
    before: Ints
    """Tokens above the first."""

    def path(self, segment: int) -> list[int]:
        """The segments from the root to this one."""
        found: list[int] = []
        while segment >= 0:
            found.append(segment)
            segment = int(self.parent[segment])
        return found[::-1]

    def tokens(self, segments: list[int]) -> Ints:
        """Indices of the tokens of some segments, in their order."""
        ranges: list[Ints] = [np.arange(self.first[s], self.first[s] + self.length[s], dtype=np.int64) for s in segments]
        return np.concatenate(ranges)


def segments(parent: IntArray, position: IntArray) -> Segments:
    """The segments of a forest."""
    index = np.arange(len(parent))
    children = np.bincount(parent + 1, minlength=len(parent) + 1)[1:]
    starts = (parent != index - 1) | (parent < 0)
    starts[1:] |= children[:-1] > 1
    first = np.flatnonzero(starts)
    owner = np.cumsum(starts) - 1
    above = parent[first].astype(np.int64)
    return Segments(first, np.diff(np.append(first, len(parent))), np.where(above < 0, -1, owner[above]), position[first].astype(np.int64))


def take(index: Ints, trained: Bools, parent: IntArray, position: IntArray, end: IntArray) -> Pack:
    """The pack of some tokens of a forest, given in ascending order together with all their ancestors."""
    above = parent[index]
    inner = np.where(above < 0, -1, np.searchsorted(index, above))
    return Pack(
        index.astype(np.int32), inner.astype(np.int32), position[index], np.searchsorted(index, end[index]).astype(np.int32), trained
    )


def whole(trained: Bools, parent: IntArray, position: IntArray, end: IntArray) -> Pack:
    """The smallest pack that trains the tokens of a mask."""
    count = np.append(0, np.cumsum(trained))
    index = np.flatnonzero(count[end] > count[:-1])
    return take(index, trained[index], parent, position, end)


def cut(pack: Pack, tokens_per_pack: int) -> list[Pack]:
    """Packs of at most `tokens_per_pack` tokens, cut where they share least. No path of `pack` may be longer.

    From the leaves up, subtrees below one segment are put together as long as they fit under it; of the groups that do not fit
    together all but the smallest are closed there, and only those repeat what stands above.
    """
    if len(pack) <= tokens_per_pack:
        return [pack] if len(pack) else []
    tree = segments(pack.parent, pack.position)
    waiting: list[list[tuple[int, list[int]]]] = [[] for _ in range(len(tree.first) + 1)]  # the last one: above the roots
    closed: list[list[int]] = []
    for segment in reversed(range(len(tree.first))):
        size = int(tree.length[segment])
        groups = sorted(_fit(waiting[segment], tokens_per_pack - int(tree.before[segment]) - size), key=lambda group: group[0])
        closed.extend(tree.path(segment) + group for _, group in groups[1:])
        rest, below = groups[0] if groups else _NOTHING
        waiting[int(tree.parent[segment])].append((size + rest, [segment, *below]))
    closed.extend(group for _, group in _fit(waiting[-1], tokens_per_pack))

    packs: list[Pack] = []
    seen = np.zeros(len(tree.first), np.bool_)
    for group in sorted(sorted(group) for group in closed):
        fresh = np.repeat(~seen[group], tree.length[group])
        seen[group] = True
        index = tree.tokens(group)
        packs.append(_within(pack, index, pack.trained[index] & fresh))
    return packs


def _fit(items: list[tuple[int, list[int]]], room: int) -> list[tuple[int, list[int]]]:
    """Put items into as few groups as first-fit does, in the order of the tree."""
    groups: list[tuple[int, list[int]]] = []
    for size, members in reversed(items):  # they came in reversed order
        for place, (used, group) in enumerate(groups):
            if used + size <= room:
                groups[place] = (used + size, group + members)
                break
        else:
            groups.append((size, members))
    return groups


def _within(pack: Pack, index: Ints, trained: Bools) -> Pack:
    """A pack of some tokens of a pack."""
    inner = take(index, trained, pack.parent, pack.position, pack.end)
    return Pack(pack.index[index], inner.parent, inner.position, inner.end, inner.trained)


def rows(pack: Pack) -> list[Pack]:
    """One row for each path from a root to a leaf, each trained token trained in the first row that has it."""
    if not len(pack):
        return []
    tree = segments(pack.parent, pack.position)
    leaf = np.ones(len(tree.first), np.bool_)
    leaf[tree.parent[tree.parent >= 0]] = False
    seen = np.zeros(len(pack), np.bool_)
    found: list[Pack] = []
    for segment in np.flatnonzero(leaf):
        index = tree.tokens(tree.path(int(segment)))
        found.append(_row(pack, index, pack.trained[index] & ~seen[index]))
        seen[index] = True
    return found


def transition_rows(pack: Pack, transition: IntArray) -> list[Pack]:
    """One row for each transition: its prompt, then its response, the only tokens trained there."""
    tree = segments(pack.parent, pack.position)
    last = dict(zip(transition[pack.trained].tolist(), np.flatnonzero(pack.trained).tolist(), strict=True))  # the last one stays
    found: list[Pack] = []
    for name in sorted(last):
        segment = int(np.searchsorted(tree.first, last[name], side="right")) - 1
        index = tree.tokens(tree.path(segment))
        index = index[index <= last[name]]
        found.append(_row(pack, index, pack.trained[index] & (transition[index] == name)))
    return found


def _row(pack: Pack, index: Ints, trained: Bools) -> Pack:
    line = np.arange(len(index), dtype=np.int32)
    return Pack(pack.index[index], line - 1, line, np.full(len(index), len(index), np.int32), trained)
