"""Puts transitions into a forest in which a context token stands once and a sampled token is always a node of its own.

A forest is kept as segments, runs of tokens without a branch between them. Context may run through sampled tokens only of its own
attempt; across attempts only context merges. Each insertion compares the prompt once with the tokens on its path (`compared`) and
adds what is new (`copied`), so that the whole is linear in the captured tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from agentlightning.model import IntArray

CHUNK = 1024
"""Tokens compared at first; the chunk grows fourfold while they are equal, so that an early difference costs little."""


class Segment:
    """A run of tokens without a branch; only a forest changes it."""

    __slots__ = ("attempt", "children", "context", "index", "offset", "parent", "sampled", "start", "tokens", "transition")

    def __init__(self, tokens: IntArray, start: int, parent: Segment | None, attempt: int = -1, transition: int = -1, offset: int = 0):
        self.tokens = tokens
        self.start = start
        """Position of the first token."""
        self.parent = parent
        self.attempt = attempt
        """-1: context."""
        self.transition = transition
        self.offset = offset
        """Of the first token in the response."""
        self.children: list[Segment] = []
        """In order of insertion."""
        self.context: dict[int, Segment] = {}
        """Context children by first token, at most one for each."""
        self.sampled: dict[tuple[int, int], list[Segment]] = {}
        """Sampled children by attempt and first token, in order of insertion."""
        self.index = 0
        """Position in the order of `Forest.segments`."""

    @property
    def stop(self) -> int:
        """One past the position of the last token."""
        return self.start + len(self.tokens)

    def add(self, child: Segment) -> None:
        """Take in a child; a child that was cut in two takes the place of its old self."""
        child.parent = self
        self.children.append(child)
        first = int(child.tokens[0])
        if child.attempt < 0:
            self.context[first] = child
        else:
            self.sampled.setdefault((child.attempt, first), []).append(child)

    def replace(self, old: Segment, new: Segment) -> None:
        """Put `new`, with the same first token, where `old` stands."""
        new.parent = self
        self.children[self.children.index(old)] = new
        first = int(new.tokens[0])
        if new.attempt < 0:
            self.context[first] = new
        else:
            siblings = self.sampled[new.attempt, first]
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
        if leaf.stop > len(prompt) or self._common(prompt, before) < len(before) or self._common(prompt[len(before) :], reply) < len(reply):
            return self.root
        return leaf

    def _walk(self, start: Segment, tokens: IntArray, attempt: int) -> tuple[Segment, int]:
        """The deepest place below the end of `start` that the tokens reach; of equals the lowest transition, context last."""
        best, deepest = start, start.stop
        stack = [start]
        while stack:
            segment = stack.pop()
            matched = 0 if segment is start else self._common(segment.tokens, tokens[segment.start :])
            depth = start.stop if segment is start else segment.start + matched
            if depth > deepest:
                best, deepest = segment, depth
            if depth == len(tokens):
                if depth == deepest:
                    break
            elif depth == segment.stop:
                first = int(tokens[depth])
                if first in segment.context:
                    stack.append(segment.context[first])
                stack.extend(reversed(segment.sampled.get((attempt, first), ())))
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

    def _split(self, segment: Segment, offset: int) -> Segment:
        """Cut a segment in two and return the head. The object stays the tail, so that who knows its end still does."""
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
        found = list(self._depth_first())
        for index, segment in enumerate(found):
            segment.index = index
        return found

    def _depth_first(self) -> Iterator[Segment]:
        stack = self.root.children[::-1]
        while stack:
            segment = stack.pop()
            yield segment
            stack.extend(reversed(segment.children))


def structure(segments: list[Segment]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """`parent`, `position` and `end` of every token of depth-first segments."""
    lengths = np.array([len(s.tokens) for s in segments], np.int64)
    ends = np.cumsum(lengths)
    firsts = ends - lengths
    index = np.arange(ends[-1] if len(ends) else 0)
    parent = index - 1
    last = np.array([-1 if s.parent is None or s.parent.start == s.parent.stop else ends[s.parent.index] - 1 for s in segments], np.int64)
    parent[firsts] = last
    position = index + np.repeat(np.array([s.start for s in segments], np.int64) - firsts, lengths)
    subtree = ends.copy()
    for s in reversed(segments):
        if s.parent is not None and s.parent.stop:
            subtree[s.parent.index] = max(subtree[s.parent.index], subtree[s.index])
    return parent.astype(np.int32), position.astype(np.int32), np.repeat(subtree, lengths).astype(np.int32)
