"""The batch is a forest of tokens: context once, every sampled token with recorded logprobs trained exactly once, or named in `untrained`.
A batch of demonstrations trains every demonstrated token exactly once instead; no batch holds both.

Arrays stand in depth-first order. Token `j` is visible to token `i` exactly when `j <= i < end[j]`, and the log-probability of token
`i` comes from the logits at `parent[i]`. Weights are fixed here, on the full batch, so that no split of the batch changes a gradient.
The order is (task, group, index, call), so that a permuted input makes the same batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from agentlightning.errors import ConfigError, TrainerError
from agentlightning.rl.batch import packs
from agentlightning.rl.batch.filling import Advantage, DoubleArray, token_arrays
from agentlightning.rl.batch.forest import Forest
from agentlightning.rl.batch.packs import Pack
from agentlightning.rl.trajectory.pairs import UNPAIRED, in_order
from agentlightning.types import FloatArray, IntArray, Trajectory, Transition, Value, ints

LossAggregation: TypeAlias = Literal["sequence_mean", "token_mean", "constant_length", "pair_mean"]
DEMONSTRATED = "demonstrated, not sampled: it belongs in no ratio"
SAMPLED = "sampled, not demonstrated"
ZERO_VARIANCE = "group without signal"


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
    """R of the weights: those with an advantage, or with a reward and no call of the model."""
    groups: int = 0
    groups_without_signal: int = 0
    """Scored groups in which every advantage is zero; they count in every denominator, and are computed only for a critic."""
    captured_tokens: int = 0
    """Prompt and response of every transition."""
    sampled_tokens: int = 0
    """Of every response, demonstrated ones included."""
    scored_tokens: int = 0
    """N of the weights: sampled tokens that could be trained, those of groups without signal included."""
    trained_tokens: int = 0
    compared_tokens: int = 0
    """Work of the conversion: tokens compared, and tokens copied into the forest."""
    copied_tokens: int = 0

    @property
    def trained_fraction(self) -> float:
        """The part of the sampled tokens that is trained."""
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
    logprob: FloatArray
    """As recorded when it was sampled: log-softmax(logits / temperature); NaN on context and on demonstrations."""
    version: IntArray
    """Of the policy that sampled it; -1 on context and on demonstrations."""
    temperature: FloatArray
    """NaN on context."""
    advantage: DoubleArray
    """0 on context."""
    weight: DoubleArray
    """Of its term in the loss; 0 on context."""

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

    value: DoubleArray | None = None
    """What the critic expected before the token was sampled; NaN on context. There, as `returns`, where an algorithm has a critic."""
    returns: DoubleArray | None = None
    """What the critic learns; NaN where it learns nothing."""
    pairs: IntArray | None = None
    """(pairs, 2) indices of a chosen rollout, with advantage 1, and of a rejected one, with -1; there where a loss compares them."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def trained(self) -> packs.Bools:
        """Which tokens are trained."""
        return self.transition >= 0

    @property
    def trained_tokens(self) -> int:
        return self.stats.trained_tokens

    def _whole(self, rollouts: Sequence[int] | None = None) -> Pack:
        trained = self.trained
        if rollouts is not None:
            chosen = np.isin(self.transition_rollout, np.asarray(rollouts, np.int32))
            trained = trained & np.append(chosen, False)[self.transition]
        return packs.whole(trained, self.parent, self.position, self.end)

    def packs(self, tokens_per_pack: int, rollouts: Sequence[int] | None = None) -> list[Pack]:
        """Sub-forests of at most `tokens_per_pack` tokens that together train every token once; only those of some rollouts, when given.

        `TrainerError` names a single path that is longer.
        """
        pack = self._whole(rollouts)
        if len(pack) and int(pack.position.max()) >= tokens_per_pack:
            token = int(pack.index[int(pack.position.argmax())])
            name = int(self.transition[token])
            rollout = int(self.transition_rollout[name])
            raise TrainerError(
                f"completion {self.completion_ids[name]} of rollout {self.rollout_ids[rollout]} ends {int(self.position[token]) + 1} "
                f"tokens after its root, and a pack holds {tokens_per_pack}; raise tokens_per_pack, or leave such replies out: "
                'collection.overlong = "drop"'
            )
        return packs.cut(pack, tokens_per_pack)

    def rows(self, rollouts: Sequence[int] | None = None) -> list[Pack]:
        """Root-to-leaf rows: each sampled token is trained in exactly one of them."""
        return packs.rows(self._whole(rollouts))

    def by_transition(self, values: DoubleArray) -> dict[str, DoubleArray]:
        """(response,) of each transition, by its completion's id, from (tokens,)."""
        places = np.flatnonzero(self.trained)
        places = places[np.argsort(self.transition[places], kind="stable")]  # the tokens of a response stand in their order
        ends = np.cumsum(np.bincount(self.transition[places], minlength=len(self.completion_ids)))
        return dict(zip(self.completion_ids, np.split(values[places], ends[:-1]), strict=True))

    def transition_rows(self) -> list[Pack]:
        """One row for each transition, as trainers without a forest have it: the reference of tests and benchmarks."""
        return packs.transition_rows(self._whole(), self.transition)


def make_batch(
    trajectories: Sequence[Trajectory],
    advantages: Sequence[ArrayLike],
    *,
    loss_aggregation: LossAggregation = "sequence_mean",
    length: int | None = None,
    demonstrations: bool = False,
    critic: Sequence[tuple[DoubleArray, DoubleArray]] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> Batch:
    """Make the batch of some trajectories.

    `advantages[k]` is (transitions of trajectory k,), or (its sampled tokens,); a transition of NaN is left out and named. Weights, with R
    the scored rollouts: `sequence_mean`: the tokens of each rollout share 1/R equally; `token_mean`: 1/N; `constant_length`: 1/(R *
    length); `pair_mean`: 1/P, with P the pairs. With `demonstrations` the demonstrated transitions are trained and the sampled ones left
    out, else the other way round. `critic[k]`: value and return of each sampled token of trajectory k. `pairs`: indices of trajectories,
    chosen and rejected; what is in none is left out. Raises `ConfigError` for a weight that cannot be, `TrainerError` for arrays that do
    not fit one another, and for a pair of which one has nothing to train."""
    if loss_aggregation not in get_args(LossAggregation):
        raise ConfigError(f"loss_aggregation is {loss_aggregation!r}; expected one of {get_args(LossAggregation)}")
    if (loss_aggregation == "pair_mean") != (pairs is not None):
        raise ConfigError("loss_aggregation 'pair_mean' goes with pairs, and only with them")
    if loss_aggregation == "constant_length" and (length is None or length < 1):
        raise ConfigError(f"loss_aggregation 'constant_length' needs length, the tokens of a rollout that weigh 1; it is {length}")
    if len(trajectories) != len(advantages):
        raise TrainerError(f"{len(trajectories)} trajectories have {len(advantages)} arrays of advantages; expected one for each")
    values = [_aligned(t, a) for t, a in zip(trajectories, advantages, strict=True)]
    order = sorted(
        range(len(values)),
        key=lambda k: (trajectories[k].task.id, trajectories[k].group, trajectories[k].index, trajectories[k].attempt_id),
    )
    said = None if critic is None else [_tokenwise(trajectories[k], critic[k]) for k in order]
    paired = None if pairs is None else in_order(pairs, order)
    return _Maker([trajectories[k] for k in order], [values[k] for k in order], demonstrations, said, paired).make(loss_aggregation, length)


def trainable(trajectory: Trajectory) -> bool:
    """Whether anything of it can be trained, once it has an advantage."""
    return any(_reason(each, None, demonstrations=False, finite=False) is None for each in trajectory.transitions)


class _Maker:
    """One use of `make_batch`, on trajectories in their final order."""

    def __init__(
        self,
        trajectories: list[Trajectory],
        advantages: list[list[Advantage]],
        demonstrations: bool,
        critic: list[list[tuple[DoubleArray, DoubleArray]]] | None,
        pairs: list[tuple[int, int]] | None,
    ) -> None:
        self.trajectories = trajectories
        self.advantages = advantages
        self.critic = critic
        self.pairs = pairs
        self.untrained: list[Untrained] = []
        missing = [[_unknown(a) for a in values] for values in advantages]
        self.scored = [not all(m) if m else t.reward is not None for t, m in zip(trajectories, missing, strict=True)]
        recorded = [t.logprobs for each in trajectories for t in each.transitions if t.logprobs is not None]
        finite = not recorded or bool(np.isfinite(np.concatenate(recorded)).all())
        self.reasons = [
            [
                _reason(t, ("earned no credit" if scored else "not scored") if nothing else None, demonstrations, finite)
                for t, nothing in zip(each.transitions, some, strict=True)
            ]
            for each, some, scored in zip(trajectories, missing, self.scored, strict=True)
        ]
        if pairs is not None:
            paired = {k for pair in pairs for k in pair}
            self.reasons = [each if k in paired else [why or UNPAIRED for why in each] for k, each in enumerate(self.reasons)]
        signal: Counter[str] = Counter()
        for t, values, why in zip(trajectories, advantages, self.reasons, strict=True):
            signal[t.group] += sum(1 for a, reason in zip(values, why, strict=True) if reason is None and _any(a))
        self.groups = {t.group for t in trajectories}
        self.flat = {t.group for t, scored in zip(trajectories, self.scored, strict=True) if scored and not signal[t.group]}
        """Groups without signal."""
        self.quiet = set[str]() if critic is not None else self.flat
        """Those that are not computed: a critic learns from every group."""
        self.trainable = [
            sum(len(t.response_ids) for t, reason in zip(each.transitions, why, strict=True) if reason is None)
            for each, why in zip(trajectories, self.reasons, strict=True)
        ]
        """Tokens that could be trained, per rollout, before the filter on signal."""

    def make(self, loss_aggregation: LossAggregation, length: int | None) -> Batch:
        """Build the forest, then write what belongs to its tokens."""
        forest = Forest()
        trained: list[tuple[Transition, Advantage, float]] = []  # with the advantage and the weight of its tokens
        critic: list[tuple[DoubleArray, DoubleArray]] = []
        owner: list[int] = []
        rollouts: list[Trajectory] = []
        places: dict[int, int] = {}
        scored, every, pairs = sum(self.scored), sum(self.trainable), len(self.pairs or ())
        for k, (each, values, reasons, tokens) in enumerate(
            zip(self.trajectories, self.advantages, self.reasons, self.trainable, strict=True)
        ):
            inserted: dict[int, int] = {}
            denominator = {
                "sequence_mean": scored * tokens,
                "token_mean": every,
                "constant_length": scored * (length or 1),
                "pair_mean": pairs,
            }[loss_aggregation]
            for place, (transition, value, reason) in enumerate(zip(each.transitions, values, reasons, strict=True)):
                if reason is None and each.group in self.quiet:
                    reason = ZERO_VARIANCE
                if reason is not None:
                    self._leave(each, transition, reason)
                    continue
                name = inserted[transition.index] = len(trained)
                before = _lineage(each, transition, inserted)
                forest.insert(name, len(rollouts), transition.prompt_ids, transition.response_ids, before)
                trained.append((transition, value, 1 / denominator))
                if self.critic is not None:
                    critic.append(self.critic[k][place])
                owner.append(len(rollouts))
            if inserted:
                places[k] = len(rollouts)
                rollouts.append(each)
        groups = tuple(dict.fromkeys(t.group for t in rollouts))
        group_of = {group: index for index, group in enumerate(groups)}
        return Batch(
            **token_arrays(forest, trained, critic if self.critic is not None else None),
            pairs=self._pairs(places),
            completion_ids=tuple(t.completion_id for t, _, _ in trained),
            transition_rollout=np.array(owner, np.int32),
            rollout_ids=tuple(t.rollout_id for t in rollouts),
            attempt_ids=tuple(t.attempt_id for t in rollouts),
            rollout_group=np.array([group_of[t.group] for t in rollouts], np.int32),
            groups=groups,
            untrained=tuple(self.untrained),
            stats=self._stats(forest, sum(len(t.response_ids) for t, _, _ in trained)),
        )

    def _pairs(self, places: dict[int, int]) -> IntArray | None:
        """(pairs, 2) from the place of each rollout that has a trained token."""
        if self.pairs is None:
            return None
        for k in (k for pair in self.pairs for k in pair if k not in places):
            raise TrainerError(f"rollout {self.trajectories[k].rollout_id} stands in a pair, and nothing of it can be trained")
        return ints(np.array([[places[k] for k in pair] for pair in self.pairs]).reshape(-1, 2))

    def _leave(self, trajectory: Trajectory, transition: Transition, reason: str) -> None:
        if len(transition.response_ids):
            left = Untrained(transition.completion_id, trajectory.rollout_id, transition.agent, len(transition.response_ids), reason)
            self.untrained.append(left)

    def _stats(self, forest: Forest, trained_tokens: int) -> Stats:
        every = [t for each in self.trajectories for t in each.transitions]
        sampled = sum(len(t.response_ids) for t in every)
        return Stats(
            rollouts=len(self.trajectories),
            scored_rollouts=int(sum(self.scored)),
            groups=len(self.groups),
            groups_without_signal=len(self.flat),
            captured_tokens=sum(len(t.prompt_ids) for t in every) + sampled,
            sampled_tokens=sampled,
            scored_tokens=sum(self.trainable),
            trained_tokens=trained_tokens,
            compared_tokens=forest.compared,
            copied_tokens=forest.copied,
        )


def _aligned(trajectory: Trajectory, advantages: ArrayLike) -> list[Advantage]:
    """Checked advantages of one trajectory, by transition (law 4)."""
    values = np.asarray(advantages, np.float64)
    transitions = trajectory.transitions
    ends = np.cumsum([len(t.response_ids) for t in transitions], dtype=np.int64)
    if values.shape not in ((len(transitions),), (int(ends[-1]) if len(ends) else 0,)):
        raise TrainerError(
            f"rollout {trajectory.rollout_id} has {len(transitions)} transitions and advantages of shape {values.shape}; "
            f"expected one advantage for each transition, or one for each of the {int(ends[-1]) if len(ends) else 0} sampled tokens"
        )
    if np.isinf(values).any():
        raise TrainerError(f"rollout {trajectory.rollout_id} has an infinite advantage; expected a number, or NaN where it was not scored")
    for t in transitions:
        length = len(t.response_ids)
        if len(t.versions) != length or (t.logprobs is not None and len(t.logprobs) != length):
            raise TrainerError(
                f"completion {t.completion_id} has {len(t.response_ids)} tokens, {len(t.versions)} versions and "
                f"{'no' if t.logprobs is None else len(t.logprobs)} logprobs; expected one of each for every token"
            )
    if len(values) == len(transitions):
        return values.tolist()
    found = np.split(values, ends[:-1])
    for t, some in zip(transitions, found, strict=True):
        if np.isnan(some).any() and not np.isnan(some).all():
            raise TrainerError(
                f"completion {t.completion_id} has an advantage for {int(np.isfinite(some).sum())} of its {len(some)} tokens; expected one "
                "for all of them, or NaN throughout where it is not trained"
            )
    return list(found)


def _tokenwise(trajectory: Trajectory, critic: tuple[DoubleArray, DoubleArray]) -> list[tuple[DoubleArray, DoubleArray]]:
    """Values and returns by transition."""
    ends = np.cumsum([len(t.response_ids) for t in trajectory.transitions], dtype=np.int64)
    for name, array in zip(("values", "returns"), critic, strict=True):
        if array.shape != (int(ends[-1]) if len(ends) else 0,):
            raise TrainerError(f"rollout {trajectory.rollout_id} has {name} of shape {array.shape}; expected one for each sampled token")
    return list(zip(*(np.split(each, ends[:-1]) for each in critic), strict=True)) if len(ends) else []


def _unknown(advantage: Advantage) -> bool:
    """Whether any of it is NaN."""
    return bool(np.isnan(advantage).any()) if isinstance(advantage, np.ndarray) else math.isnan(advantage)


def _any(advantage: Advantage) -> bool:
    """Whether any of it is not 0."""
    return bool(advantage.any()) if isinstance(advantage, np.ndarray) else advantage != 0


def _reason(transition: Transition, uncredited: str | None, demonstrations: bool, finite: bool) -> str | None:
    """Why a transition cannot be trained; None: it can. `uncredited`: why it has no advantage. `finite`: whether it is known
    that recorded logprobs are numbers."""
    if not transition.trained:
        return transition.reason or "not selected for training"
    if transition.demonstrated != demonstrations:
        return DEMONSTRATED if transition.demonstrated else SAMPLED
    if transition.logprobs is None and not demonstrations:
        return "no logprobs were recorded"
    if not finite and transition.logprobs is not None and not np.isfinite(transition.logprobs).all():
        return f"{int((~np.isfinite(transition.logprobs)).sum())} of its logprobs are missing"
    if not transition.temperature > 0:
        return "sampled greedily"
    if uncredited is not None:
        return uncredited
    if not len(transition.prompt_ids):
        return "no prompt predicts its first token"
    return None if len(transition.response_ids) else "no token was sampled"


def _lineage(trajectory: Trajectory, transition: Transition, inserted: dict[int, int]) -> int | None:
    """The nearest transition in the lineage that is in the forest."""
    before = transition.continues
    while before is not None and before not in inserted:
        before = next((t.continues for t in trajectory.transitions if t.index == before), None)
    return None if before is None else inserted[before]
