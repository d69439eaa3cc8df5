"""Makes the batch of a step: context once, every sampled token with rollout_logprobs trained exactly once, or named in `untrained`.
A batch of demonstrations trains every demonstrated token exactly once instead; no batch holds both.

The order is (task, group, index, call), so that a permuted input makes the same batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from agentlightning.contracts.batch import Batch, Stats, Untrained
from agentlightning.errors import ConfigError, TrainerError
from agentlightning.rl.batch.filling import Advantage, Row, token_arrays
from agentlightning.rl.batch.forest import Forest
from agentlightning.types import Doubles, IntArray, Ints, Trajectory, Transition, ints, is_greedy

LossAggregation: TypeAlias = Literal["sequence_mean", "token_mean", "constant_length", "pair_mean"]
DEMONSTRATED = "demonstrated, not sampled: it belongs in no ratio"
SAMPLED = "sampled, not demonstrated"
ZERO_VARIANCE = "zero-variance group"
UNPAIRED = "in no pair: no rollout was left in its group whose reward differs enough"


@dataclass(slots=True, eq=False)
class _Rollout:
    """A trajectory on its way into the batch."""

    trajectory: Trajectory
    rows: list[Row]
    scored: bool
    """Whether it has an advantage, or a reward and no call of the model."""
    tokens: int = 0
    """Tokens that could be trained, zero-variance groups included."""

    @property
    def trained(self) -> bool:
        """Whether any of its rows is trained."""
        return any(row.reason is None for row in self.rows)


def make_batch(
    trajectories: Sequence[Trajectory],
    advantages: Sequence[ArrayLike],
    *,
    loss_aggregation: LossAggregation = "sequence_mean",
    length: int | None = None,
    demonstrations: bool = False,
    critic: Sequence[tuple[Doubles, Doubles]] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> Batch:
    """Make the batch of some trajectories.

    `advantages[k]` is (transitions of trajectory k,), or (its sampled tokens,); a transition of NaN is left out and named. Weights, with B
    the scored rollouts: `sequence_mean`: the tokens of each rollout share 1/B equally; `token_mean`: 1/N; `constant_length`: 1/(B *
    length); `pair_mean`: 1/P, with P the pairs. With `demonstrations` the demonstrated transitions are trained and the sampled ones left
    out, else the other way round. `critic[k]`: value and return of each sampled token of trajectory k. `pairs`: indices of trajectories,
    chosen and rejected; trajectories in no pair are left out.

    Raises `ConfigError` for an impossible aggregation. Raises `TrainerError` for arrays that do not fit one another, and for a pair in
    which one rollout has nothing to train."""
    _check_aggregation(loss_aggregation, length, pairs)
    if len(trajectories) != len(advantages):
        raise TrainerError(f"{len(trajectories)} trajectories have {len(advantages)} arrays of advantages. Pass one array for each.")
    order = sorted(range(len(trajectories)), key=lambda k: _place(trajectories[k]))
    rollouts = [_rollout(trajectories[k], advantages[k], None if critic is None else critic[k]) for k in order]
    ordered_pairs = None if pairs is None else _in_order(pairs, order)
    _find_reasons(rollouts, demonstrations, ordered_pairs)
    flat_groups = _groups_without(rollouts, lambda row: row.teaches and row.reason is None)
    _weigh(rollouts, loss_aggregation, length or 1, len(ordered_pairs or ()))
    if critic is None:  # a critic learns from every group
        for row in (row for rollout in rollouts if rollout.trajectory.group in flat_groups for row in rollout.rows):
            row.reason = row.reason or ZERO_VARIANCE
    forest, rows = _insert(rollouts)
    trained = [rollout for rollout in rollouts if rollout.trained]
    groups = {group: index for index, group in enumerate(dict.fromkeys(rollout.trajectory.group for rollout in trained))}
    owner = [index for index, rollout in enumerate(trained) for row in rollout.rows if row.reason is None]
    return Batch(
        **token_arrays(forest, rows, critic=critic is not None),
        pairs=None if ordered_pairs is None else _pair_indices(ordered_pairs, rollouts),
        completion_ids=tuple(row.transition.completion_id for row in rows),
        transition_rollout=np.array(owner, np.int32),
        rollout_ids=tuple(rollout.trajectory.rollout_id for rollout in trained),
        attempt_ids=tuple(rollout.trajectory.attempt_id for rollout in trained),
        rollout_group=np.array([groups[rollout.trajectory.group] for rollout in trained], np.int32),
        groups=tuple(groups),
        untrained=_untrained(rollouts),
        stats=_stats(rollouts, forest, rows),
    )


def trainable(trajectory: Trajectory) -> bool:
    """Whether any transition can be trained, once it has an advantage."""
    return any(_reason(transition, demonstrations=False, finite=False) is None for transition in trajectory.transitions)


def _check_aggregation(loss_aggregation: str, length: int | None, pairs: object | None) -> None:
    if loss_aggregation not in get_args(LossAggregation):
        raise ConfigError(f"loss_aggregation is {loss_aggregation!r}. Use one of {', '.join(get_args(LossAggregation))}.")
    if (loss_aggregation == "pair_mean") != (pairs is not None):
        raise ConfigError(f"loss_aggregation is {loss_aggregation!r}. Use 'pair_mean' exactly when you pass pairs.")
    if loss_aggregation == "constant_length" and (length is None or length < 1):
        raise ConfigError(f"loss_aggregation is 'constant_length' and length is {length}. Set length to the tokens that weigh 1.")


def _place(trajectory: Trajectory) -> tuple[str, str, int, str]:
    return trajectory.task.id, trajectory.group, trajectory.index, trajectory.attempt_id


def _in_order(pairs: Sequence[tuple[int, int]], order: Sequence[int]) -> list[tuple[int, int]]:
    """Return pairs of indices, chosen and rejected, as places in `order`, sorted. Each index stands in at most one pair."""
    place = {index: place for place, index in enumerate(order)}
    for index, times in Counter(index for pair in pairs for index in pair).items():
        if index not in place or times > 1:
            raise TrainerError(
                f"Trajectory {index} of {len(order)} is in {times} places of the pairs. Use indices of trajectories, each at most once."
            )
    return sorted((place[chosen], place[rejected]) for chosen, rejected in pairs)


def _rollout(trajectory: Trajectory, advantages: ArrayLike, critic: tuple[Doubles, Doubles] | None) -> _Rollout:
    """The rows of a trajectory, with arrays whose shapes were checked (law 4)."""
    ends = np.cumsum([len(t.response_ids) for t in trajectory.transitions], dtype=np.int64)
    by_transition = _by_transition(trajectory, np.asarray(advantages, np.float64), ends)
    if critic is None:
        rows = [Row(t, advantage, None, None) for t, advantage in zip(trajectory.transitions, by_transition, strict=True)]
    else:
        for name, array in zip(("values", "returns"), critic, strict=True):
            if array.shape != (int(ends[-1]) if len(ends) else 0,):
                raise TrainerError(
                    f"Rollout {trajectory.rollout_id} has {name} of shape {array.shape}. Pass one for each of its sampled tokens."
                )
        values, returns = (np.split(array, ends[:-1]) for array in critic)
        rows = [Row(*parts) for parts in zip(trajectory.transitions, by_transition, values, returns, strict=False)]
    return _Rollout(trajectory, rows, not all(row.unscored for row in rows) if rows else trajectory.reward is not None)


def _by_transition(trajectory: Trajectory, advantages: Doubles, ends: Ints) -> list[Advantage]:
    """The advantages of each transition, from (transitions,) or (tokens,)."""
    transitions, tokens = trajectory.transitions, int(ends[-1]) if len(ends) else 0
    if advantages.shape not in ((len(transitions),), (tokens,)):
        raise TrainerError(
            f"Rollout {trajectory.rollout_id} has {len(transitions)} transitions and advantages of shape {advantages.shape}. "
            f"Pass one advantage for each transition, or one for each of its {tokens} sampled tokens."
        )
    if np.isinf(advantages).any():
        raise TrainerError(
            f"Rollout {trajectory.rollout_id} has an infinite advantage. Use a finite number, or NaN for an unscored rollout."
        )
    for t in transitions:
        length = len(t.response_ids)
        if len(t.versions) != length or (t.logprobs is not None and len(t.logprobs) != length):
            raise TrainerError(
                f"Completion {t.completion_id} has {length} tokens, {len(t.versions)} versions and "
                f"{'no' if t.logprobs is None else len(t.logprobs)} logprobs. Record one of each for every token."
            )
    if len(advantages) == len(transitions):
        return advantages.tolist()
    by_transition = np.split(advantages, ends[:-1])
    for t, response in zip(transitions, by_transition, strict=True):
        missing = int(np.isnan(response).sum())
        if 0 < missing < len(response):
            raise TrainerError(
                f"Completion {t.completion_id} has an advantage for {len(response) - missing} of its {len(response)} tokens. Give all of "
                "them one, or NaN to all to leave it out."
            )
    return list(by_transition)


def _find_reasons(rollouts: Sequence[_Rollout], demonstrations: bool, pairs: Sequence[tuple[int, int]] | None) -> None:
    """Set why rows are not trained, and count the tokens that could be."""
    recorded = [row.transition.logprobs for rollout in rollouts for row in rollout.rows if row.transition.logprobs is not None]
    finite = not recorded or bool(np.isfinite(np.concatenate(recorded)).all())
    paired = None if pairs is None else {k for pair in pairs for k in pair}
    for k, rollout in enumerate(rollouts):
        uncredited = "earned no credit" if rollout.scored else "not scored"
        unpaired = UNPAIRED if paired is not None and k not in paired else None
        for row in rollout.rows:
            reason = _reason(row.transition, uncredited if row.unscored else None, demonstrations=demonstrations, finite=finite)
            row.reason = reason or unpaired
        rollout.tokens = sum(len(row.transition.response_ids) for row in rollout.rows if row.reason is None)


def _reason(transition: Transition, uncredited: str | None = None, *, demonstrations: bool, finite: bool) -> str | None:
    """Why a transition cannot be trained; None: it can. `uncredited`: why it has no advantage. `finite`: all logprobs are numbers."""
    if not transition.trained:
        return transition.reason or "not selected for training"
    if transition.demonstrated != demonstrations:
        return DEMONSTRATED if transition.demonstrated else SAMPLED
    if transition.logprobs is None and not demonstrations:
        return "no logprobs were recorded"
    if not finite and transition.logprobs is not None and not np.isfinite(transition.logprobs).all():
        return f"{int((~np.isfinite(transition.logprobs)).sum())} of its logprobs are missing"
    if is_greedy(transition.temperature):
        return "sampled greedily"
    if uncredited is not None:
        return uncredited
    if not len(transition.prompt_ids):
        return "no prompt predicts its first token"
    return None if len(transition.response_ids) else "no token was sampled"


def _groups_without(rollouts: Sequence[_Rollout], teaches: Callable[[Row], bool]) -> set[str]:
    """Scored groups in which no row teaches anything."""
    scored = {rollout.trajectory.group for rollout in rollouts if rollout.scored}
    return scored - {rollout.trajectory.group for rollout in rollouts if any(teaches(row) for row in rollout.rows)}


def _weigh(rollouts: Sequence[_Rollout], loss_aggregation: LossAggregation, length: int, pairs: int) -> None:
    """Set the weights. Denominators count all scored rollouts, whatever is left out after this."""
    scored, tokens = sum(rollout.scored for rollout in rollouts), sum(rollout.tokens for rollout in rollouts)
    for rollout in rollouts:
        denominator = {
            "sequence_mean": scored * rollout.tokens,
            "token_mean": tokens,
            "constant_length": scored * length,
            "pair_mean": pairs,
        }[loss_aggregation]
        for row in rollout.rows:
            row.weight = 1 / denominator if row.reason is None else 0.0


def _insert(rollouts: Sequence[_Rollout]) -> tuple[Forest, list[Row]]:
    """Put the trained rows into a forest."""
    forest, trained, owner = Forest(), list[Row](), 0
    for rollout in rollouts:
        inserted: dict[int, int] = {}
        for row in rollout.rows:
            if row.reason is None:
                t = row.transition
                forest.insert(len(trained), owner, t.prompt_ids, t.response_ids, _lineage(rollout.trajectory, t, inserted))
                inserted[t.index] = len(trained)
                trained.append(row)
        owner += bool(inserted)
    return forest, trained


def _lineage(trajectory: Trajectory, transition: Transition, inserted: dict[int, int]) -> int | None:
    """The nearest transition in the lineage that is in the forest."""
    before = transition.continues
    while before is not None and before not in inserted:
        before = next((t.continues for t in trajectory.transitions if t.index == before), None)
    return None if before is None else inserted[before]


def _pair_indices(pairs: Sequence[tuple[int, int]], rollouts: Sequence[_Rollout]) -> IntArray:
    """(pairs, 2) indices in the batch."""
    index = {k: index for index, k in enumerate(k for k, rollout in enumerate(rollouts) if rollout.trained)}
    members = [k for pair in pairs for k in pair]
    for k in members:
        if k not in index:
            name = rollouts[k].trajectory.rollout_id
            raise TrainerError(f"Rollout {name} is in a pair, and none of its tokens can be trained. Leave the pair out.")
    return ints(np.array([index[k] for k in members]).reshape(-1, 2))


def _untrained(rollouts: Sequence[_Rollout]) -> tuple[Untrained, ...]:
    return tuple(
        Untrained(t.completion_id, rollout.trajectory.rollout_id, t.agent, len(t.response_ids), row.reason)
        for rollout in rollouts
        for row in rollout.rows
        if row.reason is not None and len((t := row.transition).response_ids)
    )


def _stats(rollouts: Sequence[_Rollout], forest: Forest, trained: Sequence[Row]) -> Stats:
    transitions = [row.transition for rollout in rollouts for row in rollout.rows]
    sampled = sum(len(t.response_ids) for t in transitions)
    return Stats(
        rollouts=len(rollouts),
        scored_rollouts=sum(rollout.scored for rollout in rollouts),
        groups=len({rollout.trajectory.group for rollout in rollouts}),
        zero_variance_groups=len(_groups_without(rollouts, lambda row: row.teaches and not row.unscored)),
        captured_tokens=sum(len(t.prompt_ids) for t in transitions) + sampled,
        sampled_tokens=sampled,
        scored_tokens=sum(rollout.tokens for rollout in rollouts),
        trained_tokens=sum(len(row.transition.response_ids) for row in trained),
        compared_tokens=forest.compared,
        copied_tokens=forest.copied,
    )
