"""Cuts a batch into packs: sub-forests in which every token has all its ancestors, and every trained token is trained in exactly one.

A pack names its tokens by their index in the batch. Packs of a token budget, root-to-leaf rows and rows of one transition each are all
packs; they differ in how often they repeat an ancestor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agentlightning.contracts.batch import Batch
from agentlightning.errors import TrainerError
from agentlightning.types import Bools, IntArray, Ints, Value


@dataclass(frozen=True, slots=True, eq=False)
class Pack(Value):
    """A sub-forest of a batch. All arrays are (tokens,)."""

    index: IntArray
    """Index of each token in the batch, ascending."""
    parent: IntArray
    """Index in this pack of the token before it; -1 at a root."""
    position: IntArray
    end: IntArray
    """One past its last descendant, in this pack."""
    trained: Bools
    """Whether this pack trains the token; elsewhere it is context."""

    def __len__(self) -> int:
        return len(self.index)


def cut_packs(batch: Batch, tokens_per_pack: int, rollouts: Sequence[int] | None = None, transitions: Bools | None = None) -> list[Pack]:
    """Packs of at most `tokens_per_pack` tokens that together train every token once, or only those of `rollouts` and of the true ones of
    `transitions`.

    Raises `TrainerError` for a single path that is longer.
    """
    pack = _smallest_pack(batch, rollouts, transitions)
    if len(pack) and int(pack.position.max()) >= tokens_per_pack:
        token = int(pack.index[int(pack.position.argmax())])
        transition = int(batch.transition[token])
        raise TrainerError(
            f"Completion {batch.completion_ids[transition]} of rollout {batch.rollout_ids[int(batch.transition_rollout[transition])]} ends "
            f"{int(batch.position[token]) + 1} tokens after its root, and tokens_per_pack is {tokens_per_pack}. Raise tokens_per_pack, or "
            'drop such replies with collection.overlong = "drop".'
        )
    return _cut(pack, tokens_per_pack)


def leaf_rows(batch: Batch, rollouts: Sequence[int] | None = None, transitions: Bools | None = None) -> list[Pack]:
    """One row for each path from a root to a leaf. Each token is trained in the first row that has it."""
    pack = _smallest_pack(batch, rollouts, transitions)
    if not len(pack):
        return []
    tree = runs(pack.parent, pack.position)
    leaf = np.ones(len(tree.first), np.bool_)
    leaf[tree.parent[tree.parent >= 0]] = False
    seen = np.zeros(len(pack), np.bool_)
    paths: list[Pack] = []
    for run in np.flatnonzero(leaf):
        index = tree.tokens(tree.path(int(run)))
        paths.append(_row(pack, index, pack.trained[index] & ~seen[index]))
        seen[index] = True
    return paths


def transition_rows(batch: Batch, rollouts: Sequence[int] | None = None, transitions: Bools | None = None) -> list[Pack]:
    """One row for each transition: its prompt, then its response. Only some models need them; they are also a reference for tests and
    benchmarks."""
    pack = _smallest_pack(batch, rollouts, transitions)
    if not len(pack):
        return []
    tree = runs(pack.parent, pack.position)
    owner = batch.transition[pack.index]
    last = dict(zip(owner[pack.trained].tolist(), np.flatnonzero(pack.trained).tolist(), strict=True))  # last token of each response
    paths: list[Pack] = []
    for transition in sorted(last):
        run = int(np.searchsorted(tree.first, last[transition], side="right")) - 1
        index = tree.tokens(tree.path(run))
        index = index[index <= last[transition]]
        paths.append(_row(pack, index, pack.trained[index] & (owner[index] == transition)))
    return paths


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Runs of tokens without a branch between them, depth first. All arrays are (runs,)."""

    first: Ints
    """Index of the first token."""
    length: Ints
    parent: Ints
    """Index of the run above; -1 at a root."""
    depth: Ints
    """Tokens above the first."""

    def path(self, run: int) -> list[int]:
        """The runs from the root to this one."""
        path: list[int] = []
        while run >= 0:
            path.append(run)
            run = int(self.parent[run])
        return path[::-1]

    def tokens(self, members: list[int]) -> Ints:
        """Indices of the tokens of some runs, in their order."""
        return np.concatenate([np.arange(self.first[run], self.first[run] + self.length[run], dtype=np.int64) for run in members])


def runs(parent: IntArray, position: IntArray) -> Runs:
    """The runs of a forest."""
    index = np.arange(len(parent))
    children = np.bincount(parent + 1, minlength=len(parent) + 1)[1:]
    starts = (parent != index - 1) | (parent < 0)
    starts[1:] |= children[:-1] > 1
    first = np.flatnonzero(starts)
    owner = np.cumsum(starts) - 1
    above = parent[first].astype(np.int64)
    return Runs(first, np.diff(np.append(first, len(parent))), np.where(above < 0, -1, owner[above]), position[first].astype(np.int64))


def _smallest_pack(batch: Batch, rollouts: Sequence[int] | None, transitions: Bools | None) -> Pack:
    """The smallest pack that trains the tokens of some rollouts and of some transitions (None: all)."""
    trained = batch.trained if transitions is None else np.append(transitions, False)[batch.transition]
    if rollouts is not None:
        chosen = np.isin(batch.transition_rollout, np.asarray(rollouts, np.int32))
        trained = trained & np.append(chosen, False)[batch.transition]
    count = np.append(0, np.cumsum(trained))
    index = np.flatnonzero(count[batch.end] > count[:-1])
    return _take(index, trained[index], batch.parent, batch.position, batch.end)


def _take(index: Ints, trained: Bools, parent: IntArray, position: IntArray, end: IntArray) -> Pack:
    """The pack of some tokens of a forest, given in ascending order together with all their ancestors."""
    above = parent[index]
    inner = np.where(above < 0, -1, np.searchsorted(index, above))
    return Pack(
        index.astype(np.int32), inner.astype(np.int32), position[index], np.searchsorted(index, end[index]).astype(np.int32), trained
    )


def _cut(pack: Pack, tokens_per_pack: int) -> list[Pack]:
    """Packs of at most `tokens_per_pack` tokens, cut where they share least. No path of `pack` may be longer.

    From the leaves up, subtrees below one run are joined as long as they fit under it. Of the groups that do not fit together, all but
    the smallest are closed there, and only those repeat their ancestors.
    """
    if len(pack) <= tokens_per_pack:
        return [pack] if len(pack) else []
    tree = runs(pack.parent, pack.position)
    open_groups: list[list[tuple[int, list[int]]]] = [[] for _ in range(len(tree.first) + 1)]  # by run; the last one: above the roots
    closed: list[list[int]] = []
    for run in reversed(range(len(tree.first))):
        length = int(tree.length[run])
        groups = sorted(_first_fit(open_groups[run], tokens_per_pack - int(tree.depth[run]) - length), key=lambda group: group[0])
        closed.extend(tree.path(run) + members for _, members in groups[1:])
        size, members = groups[0] if groups else (0, [])
        open_groups[int(tree.parent[run])].append((length + size, [run, *members]))
    closed.extend(members for _, members in _first_fit(open_groups[-1], tokens_per_pack))

    pieces: list[Pack] = []
    seen = np.zeros(len(tree.first), np.bool_)
    for group in sorted(sorted(group) for group in closed):
        fresh = np.repeat(~seen[group], tree.length[group])
        seen[group] = True
        index = tree.tokens(group)
        inner = _take(index, pack.trained[index] & fresh, pack.parent, pack.position, pack.end)
        pieces.append(Pack(pack.index[index], inner.parent, inner.position, inner.end, inner.trained))
    return pieces


def _first_fit(items: list[tuple[int, list[int]]], room: int) -> list[tuple[int, list[int]]]:
    """Join items (size, runs) into as few groups as first-fit does, in the order of the tree."""
    groups: list[tuple[int, list[int]]] = []
    for size, members in reversed(items):  # they came in reversed order
        for place, (used, group) in enumerate(groups):
            if used + size <= room:
                groups[place] = (used + size, group + members)
                break
        else:
            groups.append((size, members))
    return groups


def _row(pack: Pack, index: Ints, trained: Bools) -> Pack:
    line = np.arange(len(index), dtype=np.int32)
    return Pack(pack.index[index], line - 1, line, np.full(len(index), len(index), np.int32), trained)
