"""The batch that a trainer learns from: a forest of tokens, in which context appears once and every trained token is trained exactly once.

Tokens are in depth-first order. Token `j` is visible to token `i` exactly when `j <= i < end[j]`, and the log-probability of token `i`
comes from the logits at `parent[i]`. Weights are fixed on the full batch, so that no split of it changes a gradient. `rl.batch.build`
makes batches, and `rl.batch.packs` cuts them into pieces that fit a device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agentlightning.types import Bools, Doubles, FloatArray, IntArray, Value


@dataclass(frozen=True, slots=True)
class Untrained:
    """Sampled tokens that are not trained, and why."""

    completion_id: str
    rollout_id: str
    agent: str | None
    tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts over the full input of a batch."""

    rollouts: int = 0
    scored_rollouts: int = 0
    """B of the weights: rollouts with an advantage, or with a reward and no call of the model."""
    groups: int = 0
    zero_variance_groups: int = 0
    """Scored groups in which every advantage is zero. They count in every denominator, and only a critic learns from them."""
    captured_tokens: int = 0
    """Prompt and response of every transition."""
    sampled_tokens: int = 0
    """Every response, demonstrated ones included."""
    scored_tokens: int = 0
    """N of the weights: sampled tokens that could be trained, those of zero-variance groups included."""
    trained_tokens: int = 0
    compared_tokens: int = 0
    """Tokens compared while the forest was built."""
    copied_tokens: int = 0
    """Tokens copied into the forest."""

    @property
    def trained_fraction(self) -> float:
        """Trained tokens per sampled token."""
        return self.trained_tokens / self.sampled_tokens if self.sampled_tokens else 0.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Batch(Value):
    """A forest of tokens. Arrays are (tokens,) unless they say otherwise; context has transition -1."""

    token_ids: IntArray
    parent: IntArray
    """Index of the token before it; -1 at a root."""
    position: IntArray
    """Distance from the root: the position id."""
    end: IntArray
    """One past the last descendant."""
    transition: IntArray
    """Index of the transition that sampled it; -1 on context."""
    rollout_logprobs: FloatArray
    """The engine's log-softmax(logits / temperature) at sampling; NaN on context and on demonstrations."""
    version: IntArray
    """Version of the policy that sampled it; -1 on context and on demonstrations."""
    temperature: FloatArray
    """NaN on context."""
    advantage: Doubles
    """0 on context."""
    weight: Doubles
    """Factor of its term in the loss; 0 on context."""

    completion_ids: tuple[str, ...]
    """(transitions,)"""
    transition_rollout: IntArray
    """(transitions,) index of the rollout."""
    rollout_ids: tuple[str, ...]
    """(rollouts,) those with a trained token, in order."""
    attempt_ids: tuple[str, ...]
    """(rollouts,)"""
    rollout_group: IntArray
    """(rollouts,) index of the group."""
    groups: tuple[str, ...]
    """(groups,)"""
    untrained: tuple[Untrained, ...] = ()
    stats: Stats = Stats()

    value: Doubles | None = None
    """The critic's expected return before the token; NaN on context. Set, like `returns`, only if the algorithm uses a critic."""
    returns: Doubles | None = None
    """The critic's target; NaN where it has none."""
    pairs: IntArray | None = None
    """(pairs, 2) rollouts, chosen (advantage 1) and rejected (advantage -1). Set only if the loss compares pairs."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def trained(self) -> Bools:
        """Which tokens are trained."""
        return self.transition >= 0

    @property
    def trained_tokens(self) -> int:
        return self.stats.trained_tokens

    def by_transition(self, values: Doubles) -> dict[str, Doubles]:
        """(response,) of each transition, by its completion's id, from (tokens,)."""
        tokens = np.flatnonzero(self.trained)
        tokens = tokens[np.argsort(self.transition[tokens], kind="stable")]  # the tokens of a response keep their order
        ends = np.cumsum(np.bincount(self.transition[tokens], minlength=len(self.completion_ids)))
        return dict(zip(self.completion_ids, np.split(values[tokens], ends[:-1]), strict=True))
