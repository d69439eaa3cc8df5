"""Continuous batching, without threads or event loops: each `step` gives every live reply one more token.

Each reply has one row of `Slots` with keys and values of all its tokens except the last. A step first lets waiting replies join: it copies
their common prefix with another sequence and prefills the rest. Then it runs the last token of every row together. A change of the weights
recomputes everything.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from agentlightning.errors import EngineError
from agentlightning.types import FinishReason, Sampling
from agentlightning_torch.draw import draw
from agentlightning_torch.prefix import CachedPrefix, PrefixCache, Tokens, common, shared_prefixes
from agentlightning_torch.slots import Decode, KVShape, Prefill, Slots, forward
from agentlightning_torch.weights import Weights

PREFILL = 2048
"""Maximum number of tokens in one prefill pass."""
WORTH_WAITING = 16
"""A reply waits for another's prefill if it can then copy this many more tokens."""
WORTH_SHARING = 64
"""Rows with so many common tokens read their keys together."""


class Reply:
    """One in-flight reply."""

    def __init__(self, prompt: Tokens, sampling: Sampling, limit: int, policy: str = "main") -> None:
        self.sampling, self.policy = sampling, policy
        self.noise = np.random.default_rng(None if sampling.seed is None else sampling.seed & (2**64 - 1))
        self.stops = frozenset(sampling.stop_ids)
        self.end = len(prompt) + limit
        """Length at which it ends."""
        self.start = self.length = len(prompt)
        self.cached = 0
        """Number of tokens whose keys and values are in its row."""
        self.row = -1
        self._tokens = np.empty(len(prompt) + min(limit, 256), np.int32)
        self._tokens[: len(prompt)] = prompt

    @property
    def tokens(self) -> Tokens:
        """Prompt and response so far."""
        return self._tokens[: self.length]

    @property
    def started(self) -> bool:
        """Return True if a token was sampled. Such a reply is in flight, even if it waits for a row again."""
        return self.length > self.start

    def append(self, token: int) -> FinishReason | None:
        if self.length == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
        self._tokens[self.length] = token
        self.length += 1
        if token in self.stops:
            return "stop"
        return "length" if self.length >= self.end else None


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One token of a reply."""

    reply: Reply
    token: int
    logprob: float
    version: int
    finish: FinishReason | None


@dataclass(slots=True)
class Counts:
    """Number of computed tokens and decode steps so far."""

    prefilled: int = 0
    copied: int = 0
    """Number of prompt tokens copied from another sequence instead of prefilled."""
    decoded: int = 0
    steps: int = 0


class Sampler:
    """The replies of one engine. Use it in one thread at a time. `memory` is the bytes for the KV cache, including the prefix cache."""

    def __init__(self, weights: Weights, shape: KVShape, *, max_batch: int, memory: int, length: int = 0) -> None:
        """`length`: tokens of the sequences, for `imposed_length`."""
        self.waiting: deque[Reply] = deque()
        self.live: list[Reply] = []
        """Live replies by row."""
        self.counts = Counts()
        self._weights, self._shape, self._max_batch, self._memory, self._length = weights, shape, max_batch, memory, length
        self._slots = Slots(shape)
        self._prefixes = PrefixCache(shape.token_bytes)
        self._generation = weights.generation
        self._grouped: list[Reply] = []
        self._groups: list[tuple[list[int], int]] = []
        self._ending: list[Reply] = []
        """Replies whose last token `step` has not returned yet."""

    @property
    def in_flight(self) -> bool:
        """Return True while a reply has a row, or has lost it to others and is not complete."""
        return bool(self.live) or any(reply.started for reply in self.waiting)

    @property
    def bytes(self) -> int:
        """Memory of keys and values, with the prefix cache."""
        return self._slots.bytes + self._prefixes.bytes

    def add(self, reply: Reply) -> None:
        self.waiting.append(reply)

    def drop(self, reply: Reply) -> None:
        """Remove a live or waiting reply. Finished replies are ignored."""
        if reply.row >= 0:
            self._leave(reply)
        elif reply in self.waiting:
            self.waiting.remove(reply)

    def fail(self) -> list[Reply]:
        """Clear everything. Return the lost replies."""
        lost = list(dict.fromkeys([*self.live, *self.waiting, *self._ending]))
        for reply in lost:
            reply.row, reply.cached = -1, 0
        self.live.clear()
        self.waiting.clear()
        self._ending.clear()
        self.forget()
        return lost

    def forget(self) -> None:
        """Drop all keys and values. Live replies are recomputed. Without any, the rows give their memory back to the prefix cache."""
        self._prefixes.clear()
        if not self.live:
            self._slots = Slots(self._shape)
        for reply in self.live:
            reply.cached = 0

    def step(self, *, admit: bool) -> list[SampledToken]:
        """Sample one more token for each live reply. With `admit`, waiting ones join; without, only those that lost their row."""
        with self._weights.lock:
            if self._generation != self._weights.generation:
                self.forget()
                self._generation = self._weights.generation
            self._prefill()
            while self._admit(fresh=admit):
                self._prefill()
            if not self.live:
                return []
            self._make_room()
            positions = np.array([reply.length - 1 for reply in self.live])
            ids = np.array([reply.tokens[-1] for reply in self.live])
            places = torch.from_numpy(positions).to(self._shape.device)
            attend = Decode(self._slots, places, int(positions.max()) + 1, self._shared())
            policies = [reply.policy for reply in self.live]
            with self._weights.adapters.over(policies, self._shape.device):
                logits = forward(self._weights.model, ids, positions, attend, last_only=False, length=self._length)
            tokens, logprobs = draw(logits, [r.sampling for r in self.live], [r.noise for r in self.live])
            versions = [self._weights.version_of(policy) for policy in policies]
        # A NaN comes from the weights, so it concerns every row.
        if not np.isfinite(logprobs).all():
            raise EngineError(
                f"The logits are not finite at version {max(versions)}: the weights diverged. Resume an earlier checkpoint with a lower lr."
            )
        self.counts.steps += 1
        self.counts.decoded += len(self.live)
        events: list[SampledToken] = []
        for reply, token, logprob, version in zip(self.live, tokens, logprobs, versions, strict=True):
            reply.cached = reply.length
            events.append(SampledToken(reply, token, logprob, version, reply.append(token)))
        self._ending = [event.reply for event in events if event.finish]
        for reply in self._ending:
            self._leave(reply)
        self._ending = []
        return events

    def _shared(self) -> list[tuple[list[int], int]]:
        """Return the rows of one policy that share a prefix, and its length. Found anew only when the rows have changed."""
        if self._grouped != self.live:
            self._grouped, self._groups = list(self.live), []
            for policy in dict.fromkeys(reply.policy for reply in self.live):
                own = [reply for reply in self.live if reply.policy == policy]
                groups = shared_prefixes([reply.tokens[:-1] for reply in own], WORTH_SHARING)
                self._groups += [([own[number].row for number in numbers], length) for numbers, length in groups]
        return self._groups

    def _admit(self, *, fresh: bool) -> bool:
        """Give waiting replies rows, first come, first served. A reply waits if another one is about to prefill its prompt. Unless `fresh`,
        only replies with a sampled token join."""
        joined: list[Reply] = []
        for reply in [reply for reply in self.waiting if fresh or reply.started]:
            longest = max([reply.length, *(other.length for other in self.live)])
            cost = self._slots.cost(len(self.live) + 1, longest)
            if len(self.live) >= self._max_batch or (self.live and cost > self._memory):
                break
            need = reply.length - 1
            shared, entry = self._prefixes.find(reply.tokens[:need], reply.policy)
            source: CachedPrefix | Reply | None = entry
            for other in (other for other in self.live if other.policy == reply.policy):
                n = common(other.tokens[: other.cached], reply.tokens[:need])
                if n > shared:
                    shared, source = n, other
            ahead = [other for other in joined if other.policy == reply.policy]
            if any(common(other.tokens[:-1], reply.tokens[:need]) > shared + WORTH_WAITING for other in ahead):
                continue
            self._join(reply, source, shared)
            joined.append(reply)
        return bool(joined)

    def _join(self, reply: Reply, source: CachedPrefix | Reply | None, shared: int) -> None:
        # first of all, so `fail` finds it
        self.waiting.remove(reply)
        reply.row = len(self.live)
        self.live.append(reply)
        if isinstance(source, CachedPrefix):
            self._prefixes.touch(source)  # the last one to be dropped; even then it can be copied here
        self._fit(max(other.length for other in self.live), joining=1)
        if isinstance(source, Reply):
            self._slots.write(reply.row, *self._slots.read(source.row, shared))
        elif source is not None:
            self._slots.write(reply.row, source.keys[:, :, :shared], source.values[:, :, :shared])
        reply.cached = shared
        self.counts.copied += shared

    def _prefill(self) -> None:
        """Compute keys and values of live replies, except for their last tokens."""
        while behind := [reply for reply in self.live if reply.cached < reply.length - 1]:
            room = PREFILL
            pieces: list[tuple[int, int, int]] = []
            for reply in behind:
                count = min(room, reply.length - 1 - reply.cached)
                if count:
                    pieces.append((reply.row, reply.cached, count))
                room -= count
            ids = np.concatenate([self.live[row].tokens[start : start + count] for row, start, count in pieces])
            positions = np.concatenate([np.arange(start, start + count) for _, start, count in pieces])
            policies, counts = [self.live[row].policy for row, *_ in pieces], [count for *_, count in pieces]
            with self._weights.adapters.over(policies, self._shape.device, counts):
                forward(self._weights.model, ids, positions, Prefill(self._slots, pieces), last_only=True, length=self._length)
            for row, _, count in pieces:
                self.live[row].cached += count
            self.counts.prefilled += len(ids)

    def _make_room(self) -> None:
        """Extend every row by a token. Without enough memory, the last row waits again and keeps its tokens."""
        longest = max(reply.length for reply in self.live)
        while len(self.live) > 1 and self._slots.cost(len(self.live), longest) > self._memory:
            last = self.live.pop()
            last.row, last.cached = -1, 0
            self.waiting.appendleft(last)
            longest = max(reply.length for reply in self.live)
        self._fit(longest)

    def _fit(self, longest: int, *, joining: int = 0) -> None:
        """Make room for the live rows. The last `joining` of them are still empty. If this needs a copy, also make room for the waiting
        ones."""
        rows = len(self.live)
        if self._slots.holds(rows, longest):
            return
        hoped = min(self._max_batch, rows + len(self.waiting))
        if self._slots.cost(hoped, longest) > self._memory:
            hoped = rows
        self._prefixes.trim(self._memory - self._slots.cost(hoped, longest))
        self._slots.fit(hoped, longest, keep=rows - joining)

    def _leave(self, reply: Reply) -> None:
        """Free a row: cache its keys and values, and move the last row into its place."""
        row, last = reply.row, self.live[-1]
        room = self._memory - self._slots.bytes
        self._prefixes.add(reply.tokens[: reply.cached], lambda n: self._slots.read(row, n), room, reply.policy)
        if last is not reply:
            self._slots.write(row, *self._slots.read(last.row, last.cached))
            self.live[row] = last
            last.row = row
        self.live.pop()
        reply.row = -1
