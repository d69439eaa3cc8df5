"""A forest in which a context token stands once and every sampled token is a node of its own.

A forest is kept as segments, runs of tokens without a branch between them. Context may run through sampled tokens only of its own
attempt; across attempts only context merges. Each insertion compares the prompt once with the tokens on its path (`compared`) and
adds the new ones (`copied`), so the work is linear in the captured tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from agentlightning.types import IntArray

CHUNK = 1024
"""Tokens compared at first; the chunk grows fourfold while they are equal, so that an early difference costs little."""


class Segment:
    """A run of tokens without a branch; only a forest changes it."""

    __slots__ = ("attempt", "below", "children", "index", "offset", "parent", "start", "stop", "tokens", "transition")

    def __init__(self, tokens: IntArray, start: int, parent: Segment | None, attempt: int = -1, transition: int = -1, offset: int = 0):
        self.tokens = tokens
        self.start = start
        """Position of the first token."""
        self.stop = start + len(tokens)
        """One past the position of the last token."""
        self.parent = parent
        self.attempt = attempt
        """-1: context."""
        self.transition = transition
        self.offset = offset
        """Of the first token in the response."""
        self.children: list[Segment] = []
        """In order of insertion."""
        self.below: dict[tuple[int, int], list[Segment]] = {}
        """Children by attempt and first token, in order of insertion; of context at most one for each."""
        self.index = 0
        """Position in the order of `Forest.segments`."""

    def add(self, child: Segment) -> None:
        """Take in a child."""
        child.parent = self
        self.children.append(child)
        self.below.setdefault((child.attempt, child.tokens.item(0)), []).append(child)

    def replace(self, old: Segment, new: Segment) -> None:
        """Put `new`, with the same first token, where `old` stands."""
        new.parent = self
        for siblings in (self.children, self.below[new.attempt, new.tokens.item(0)]):
            siblings[siblings.index(old)] = new


class Forest:
    """Grows by `insert`, in a fixed order; read it with `segments`."""

    def __init__(self) -> None:
        self.root = Segment(np.empty(0, np.int32), 0, None)
        self.compared = 0
        self.copied = 0
        self._paths: dict[int, tuple[IntArray, IntArray, Segment]] = {}

    def insert(self, transition: int, attempt: int, prompt: IntArray, response: IntArray, continues: int | None = None) -> None:
        """Add one transition. `continues` is an inserted transition of the attempt, the nearest in its lineage."""
        at, depth = self._walk(self._start(prompt, continues), prompt, attempt)
        if depth < at.stop:
            at = self._split(at, depth - at.start)
        for tokens, start, owner, name in ((prompt[depth:], depth, -1, -1), (response, len(prompt), attempt, transition)):
            if len(tokens):
                child = Segment(tokens, start, at, owner, name)
                at.add(child)
                at = child
                self.copied += len(tokens)
        self._paths[transition] = (prompt, response, at)

    def _start(self, prompt: IntArray, continues: int | None) -> Segment:
        """The end of the transition that the prompt starts with in full; else the root."""
        if continues is None:
            return self.root
        before, reply, leaf = self._paths[continues]
        middle = len(before)
        if leaf.stop <= len(prompt) and self._equal(prompt[:middle], before) and self._equal(prompt[middle : leaf.stop], reply):
            return leaf
        return self.root

    def _walk(self, start: Segment, tokens: IntArray, attempt: int) -> tuple[Segment, int]:
        """The deepest place below the end of `start` that the tokens reach; of equals the lowest transition, context last."""
        best, deepest = start, start.stop
        stack = [start]
        while stack:
            segment = stack.pop()
            depth = segment.stop if segment is start else segment.start + self._common(segment.tokens, tokens[segment.start :])
            if depth > deepest:
                best, deepest = segment, depth
            if depth == len(tokens):
                if depth == deepest:
                    break
            elif depth == segment.stop and segment.below:
                first = tokens.item(depth)
                stack.extend(segment.below.get((-1, first), ()))
                stack.extend(reversed(segment.below.get((attempt, first), ())))
        return best, deepest

    def _common(self, a: IntArray, b: IntArray) -> int:
        """Length of the longest common prefix."""
        length = min(len(a), len(b))
        done, chunk = 0, CHUNK
        while done < length:
            upto = min(length, done + chunk)
            unequal = a[done:upto] != b[done:upto]
            self.compared += upto - done
            first = int(unequal.argmax())
            if unequal[first]:
                return done + first
            done, chunk = upto, chunk * 4
        return length

    def _equal(self, a: IntArray, b: IntArray) -> bool:
        """Whether two arrays of one length are equal. They usually are, so an early end would gain nothing."""
        self.compared += len(a)
        return a.tobytes() == b.tobytes() if a.dtype == b.dtype else np.array_equal(a, b)  # the fastest way

    def _split(self, segment: Segment, offset: int) -> Segment:
        """Cut a segment in two and return the head. The object stays the tail, so references to its end stay valid."""
        head = Segment(segment.tokens[:offset], segment.start, None, segment.attempt, segment.transition, segment.offset)
        assert segment.parent is not None
        segment.parent.replace(segment, head)
        segment.tokens = segment.tokens[offset:]
        segment.start += offset
        segment.offset += offset
        head.add(segment)
        return head

    def segments(self) -> list[Segment]:
        """All segments, depth first; sets `index`."""
        ordered = list(self._depth_first())
        for index, segment in enumerate(ordered):
            segment.index = index
        return ordered

    def _depth_first(self) -> Iterator[Segment]:
        stack = self.root.children[::-1]
        while stack:
            segment = stack.pop()
            yield segment
            stack.extend(reversed(segment.children))


def structure(segments: list[Segment], parent: IntArray, position: IntArray, end: IntArray) -> None:
    """Write `parent`, `position` and `end` of every token of depth-first segments."""
    if not segments:
        return
    starts = np.array([s.start for s in segments], np.int64)
    lengths = np.array([len(s.tokens) for s in segments], np.int64)
    ends = np.cumsum(lengths)
    firsts = ends - lengths
    above = np.array([s.parent.index if s.parent is not None and s.parent.stop else -1 for s in segments], np.int64)
    parent[:] = np.arange(-1, len(parent) - 1, dtype=np.int32)
    parent[firsts] = np.where(above < 0, -1, ends[above] - 1)
    subtree = ends.tolist()
    for own, other in zip(range(len(segments) - 1, -1, -1), above[::-1].tolist(), strict=True):
        if other >= 0 and subtree[own] > subtree[other]:
            subtree[other] = subtree[own]
    # Both are sums of the change from one token to the next, so they need no other arrays of their size.
    for array, step, first, last in ((position, 1, starts, starts + lengths - 1), (end, 0, np.array(subtree), np.array(subtree))):
        array[:] = step
        array[firsts] = first - np.append(0, last[:-1])
        np.cumsum(array, out=array)
