"""One training step on a batch: passes without gradient, minibatch gradients, and metrics.

The loss is a weighted sum over trained tokens. Its weights are fixed on the full batch, so any split into packs gives the same gradient.
Values of a sequence (GSPO, sequence-level corrections) or a pair (DPO) come from a pass without gradient, before any of its packs is
differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import Level, LossSettings
from agentlightning.errors import NonFinite
from agentlightning.rl.correction import sums
from agentlightning.rl.loss import DPOLoss
from agentlightning.types import Doubles, Ints
from agentlightning_torch.critic import ValueHead
from agentlightning_torch.forward import Scores
from agentlightning_torch.losses import TermInputs, term
from agentlightning_torch.losses.dpo import margins
from agentlightning_torch.losses.kl import kl_term
from agentlightning_torch.losses.value import value_term

Score = Callable[[Sequence[int] | None, bool], Iterator[tuple[Scores, int]]]
"""`(rollouts, entropy)` yields scores of every pack of some rollouts (None: all), one at a time, with the number of computed tokens. With
`entropy`, the entropy has a gradient."""


@dataclass(slots=True, eq=False)
class Update:
    """One training step."""

    batch: Batch
    loss: LossSettings
    score: Score
    reference: Callable[[], AbstractContextManager[None]]
    """Makes the model that `score` runs the reference."""
    critic: ValueHead | None = None
    value_clip: float | None = None

    parts: list[list[int]] = field(init=False)
    """Rollouts of each minibatch."""
    old_logprobs: Doubles = field(init=False)
    """(tokens,) the trainer's log-probabilities before the first optimizer step; NaN where not trained."""
    reference_logprobs: Doubles = field(init=False)
    """(tokens,)"""
    corrections: Doubles = field(init=False)
    """(tokens,) c; NaN until `old_logprobs` of the token is set."""
    prepared: bool = False
    """Whether `old_logprobs` is complete before the first gradient. Otherwise, the first and only pass fills it."""
    tokens: int = 0
    """Number of computed tokens so far."""
    passes: float = 0.0
    """Number of passes over the full batch so far."""
    norms: list[float] = field(default_factory=list[float])
    """Gradient norm of each optimizer step."""
    sums: dict[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        count, pairs = self.loss.minibatches, self.batch.pairs
        units: list[list[int]] = [[rollout] for rollout in range(len(self.batch.rollout_ids))] if pairs is None else pairs.tolist()
        parts = ([rollout for unit in units[k::count] for rollout in unit] for k in range(count))
        self.parts = [part for part in parts if part]
        self.old_logprobs, self.reference_logprobs, self.corrections = np.full((3, len(self.batch)), np.nan)

    @property
    def several(self) -> bool:
        """Return True if the weights change within the step."""
        return self.loss.epochs * len(self.parts) > 1

    @property
    def needs_old(self) -> bool:
        """Return True if the loss needs all `old_logprobs` before the first gradient."""
        correction = self.loss.correction
        return self.several or self.loss.over_pairs or (correction is not None and correction.over != "token")

    @property
    def repeats(self) -> bool:
        """Return True if the step passes over its tokens several times."""
        return self.needs_old or bool(self.loss.kl_coef)

    def prepare(self) -> None:
        """Compute everything that needs the weights before the step."""
        if self.needs_old:
            self.old_logprobs = self._pass(None)
            self.prepared = True
            self._correct(np.flatnonzero(self.batch.trained))
        if self.loss.kl_coef or self.loss.over_pairs:
            with self.reference():
                self.reference_logprobs = self._pass(None)

    def gradient(self, part: int) -> None:
        """Add a minibatch's gradient, as an estimate of the full loss, to the parameters."""
        rollouts = self.parts[part] if len(self.parts) > 1 else None
        sequence_log_ratios = self._sequence_log_ratios(rollouts)
        pair_margins = self._pair_margins(self.loss, part, rollouts) if isinstance(self.loss, DPOLoss) else None
        self._count_pass(rollouts)
        for scores, tokens in self.score(rollouts, bool(self.loss.entropy_coef)):
            self.tokens += tokens
            index = scores.index
            if not self.prepared:
                self.old_logprobs[index] = _numpy(scores.logprob)
                self._correct(index)
            inputs = TermInputs(
                logprobs=scores.logprob,
                old_logprobs=_take(self.old_logprobs, scores) if self.prepared else scores.logprob.detach(),
                advantages=_take(self.batch.advantage, scores),
                sequence_log_ratios=None if sequence_log_ratios is None else _take(sequence_log_ratios, scores),
                pair_margins=scores.logprob.new_empty(0) if pair_margins is None else _take(pair_margins, scores),
            )
            loss = self._loss(inputs, scores)
            if not torch.isfinite(loss):
                completion = self.batch.completion_ids[int(self.batch.transition[index[0]])]
                raise NonFinite(
                    f"The loss is {float(loss.detach())} in a pack of {tokens} tokens (completion {completion}). "
                    "Lower trainer.lr or check the rewards; the weights are unchanged."
                )
            self._add("loss", float(loss.detach()))
            self._measure(inputs, scores)
            if self.critic is not None and self.batch.returns is not None:
                loss = loss + self._value_loss(self.critic, scores)
            (loss * len(self.parts)).backward()

    def _loss(self, inputs: TermInputs, scores: Scores) -> torch.Tensor:
        """Return the scalar loss of a pack: the sum of w * (c * term + kl_coef * K - entropy_coef * H)."""
        weight = _take(self.batch.weight, scores)
        loss = (weight * _take(self.corrections, scores) * term(self.loss, inputs)).sum()
        if self.loss.kl_coef:
            divergence = kl_term(self.loss.kl_estimator, inputs.logprobs, _take(self.reference_logprobs, scores))
            loss = loss + self.loss.kl_coef * (weight * divergence).sum()
            self._add("kl", float(divergence.detach().sum()))
        if self.loss.entropy_coef:
            loss = loss - self.loss.entropy_coef * (weight * scores.entropy).sum()
        return loss

    def values(self) -> Doubles:
        """(tokens,) the critic's values; NaN where not trained."""
        assert self.critic is not None
        values = np.full(len(self.batch), np.nan)
        with torch.no_grad():
            for scores, _ in self.score(None, False):
                values[scores.index] = _numpy(self.critic(scores.hidden))
        return values

    def metrics(self, version: int) -> dict[str, float]:
        """Return the step's metrics. `version` is the weights' version before the step. Metrics without data are absent."""
        batch, total = self.batch, self.sums
        count = total["count"]
        leaf = batch.end == np.arange(1, len(batch) + 1)
        metrics = {
            "loss": total["loss"] / self.loss.epochs,
            "grad_norm": float(np.mean(self.norms)),
            "tokens": float(self.tokens),
            "tokens_trained": float(batch.trained_tokens),
            "tokens_context": float(len(batch) - batch.trained_tokens),
            "forest_saving": float((batch.position[leaf] + 1).sum() / len(batch)),
            "entropy": total["entropy"] / count,
            **self._mismatch(version),
            **self._critic_metrics(),
        }
        if self.loss.kl_coef:
            metrics["kl"] = total["kl"] / count
        if len(self.norms) > 1:  # at the first optimizer step, the ratio is 1 by definition
            metrics["ratio_mean"] = total["ratio"] / count
            if "clipped" in total:
                metrics["clip_fraction"] = total["clipped"] / count
        if "pairs" in total:
            metrics |= {"dpo_accuracy": total["preferred"] / total["pairs"], "dpo_margin": total["margin"] / total["pairs"]}
        return metrics

    def _mismatch(self, version: int) -> dict[str, float]:
        """Return `mismatch_*` and `off_policy_*` metrics.

        `mismatch_*` compares trainer and engine on tokens sampled by this exact version. `abs` is the mean of |old_logprobs -
        rollout_logprobs|, `abs_error` its standard error, and `kl` Schulman's k3 estimate of KL(rollout, old). `off_policy_*` is the same
        on tokens of other versions, where differences are expected. Demonstrations do not count, because no engine sampled them.
        """
        batch = self.batch
        sampled = batch.trained & np.isfinite(batch.rollout_logprobs)
        if not sampled.any():
            return {}
        metrics: dict[str, float] = {}
        log_ratio, gap = self.old_logprobs[sampled] - batch.rollout_logprobs[sampled], version - batch.version[sampled]
        for name, ratios in (("mismatch", log_ratio[gap == 0]), ("off_policy", log_ratio[gap != 0])):
            if len(ratios):
                metrics[f"{name}_abs"] = float(np.abs(ratios).mean())
                if len(ratios) > 1:
                    metrics[f"{name}_abs_error"] = float(np.abs(ratios).std(ddof=1) / math.sqrt(len(ratios)))
                metrics[f"{name}_abs_max"] = float(np.abs(ratios).max())
                metrics[f"{name}_kl"] = float((np.expm1(ratios) - ratios).mean())
        gap = gap[batch.version[sampled] >= 0]
        if len(gap):
            metrics |= {"version_gap_mean": float(gap.mean()), "version_gap_max": float(gap.max())}
        if self.loss.correction is not None:
            weights = self.corrections[sampled]
            metrics |= {"correction_mean": float(weights.mean()), "correction_dropped": float((weights == 0).mean())}
        return metrics

    def _critic_metrics(self) -> dict[str, float]:
        batch = self.batch
        if "value_loss" not in self.sums or batch.returns is None or batch.value is None:
            return {}
        metrics = {"value_loss": self.sums["value_loss"] / self.loss.epochs}
        targets = np.isfinite(batch.returns)
        variance = float(np.var(batch.returns[targets]))
        if variance > 0:
            metrics["explained_variance"] = 1 - float(np.var((batch.returns - batch.value)[targets])) / variance
        return metrics

    def _pass(self, rollouts: Sequence[int] | None) -> Doubles:
        """Return (tokens,) log-probabilities without gradient; NaN outside `rollouts`."""
        self._count_pass(rollouts)
        logprobs = np.full(len(self.batch), np.nan)
        with torch.no_grad():
            for scores, tokens in self.score(rollouts, False):
                self.tokens += tokens
                logprobs[scores.index] = _numpy(scores.logprob)
        return logprobs

    def _count_pass(self, rollouts: Sequence[int] | None) -> None:
        self.passes += 1 if rollouts is None else 1 / len(self.parts)

    def _correct(self, index: Ints) -> None:
        """Set c of some tokens from their `old_logprobs`."""
        self.corrections[index] = 1.0
        correction = self.loss.correction
        if correction is None:
            return
        index = index[np.isfinite(self.batch.rollout_logprobs[index])]
        if len(index):
            log_ratio = self.old_logprobs[index] - self.batch.rollout_logprobs[index]
            self.corrections[index] = correction.weights(log_ratio, self._sequences(correction.over, index))

    def _sequences(self, over: Level, index: Ints) -> Ints:
        """Return the number of each token's sequence, (tokens,)."""
        if over == "token":
            return np.arange(len(index))
        turns = self.batch.transition[index].astype(np.int64)
        return turns if over == "turn" else self.batch.transition_rollout[turns].astype(np.int64)

    def _sequence_log_ratios(self, rollouts: Sequence[int] | None) -> Doubles | None:
        """Return the mean log-ratio of each token's sequence under the current weights, (tokens,). None if the loss uses token ratios."""
        if self.loss.ratio_over == "token":
            return None
        log_ratios = np.zeros(len(self.batch))
        if self.norms:  # before the first optimizer step, every ratio is 1
            logprobs = self._pass(rollouts)
            index = np.flatnonzero(np.isfinite(logprobs))
            sequences = self._sequences(self.loss.ratio_over, index)
            log_ratios[index] = sums(logprobs[index] - self.old_logprobs[index], sequences, mean=True)
        return log_ratios

    def _pair_margins(self, loss: DPOLoss, part: int, rollouts: Sequence[int] | None) -> Doubles:
        """Return z of each token's pair in a minibatch under the current weights, (tokens,). Also measure the loss of its pairs."""
        assert self.batch.pairs is not None
        logprobs = self._pass(rollouts) if self.norms else self.old_logprobs
        of_pairs, of_tokens = margins(self.batch, self.batch.pairs, loss.beta, logprobs - self.reference_logprobs)
        z = of_pairs[np.isin(self.batch.pairs[:, 0], self.parts[part])]
        self._add("loss", float(np.logaddexp(0, -z).sum()) / len(of_pairs))
        self._add("pairs", len(z))
        self._add("preferred", float((z > 0).sum()))
        self._add("margin", float(z.sum()))
        return of_tokens

    def _value_loss(self, critic: ValueHead, scores: Scores) -> torch.Tensor:
        """Return a pack's value loss, a mean over all targets of the batch. Its gradient does not reach the policy."""
        batch = self.batch
        assert batch.returns is not None
        assert batch.value is not None
        targets = np.isfinite(batch.returns[scores.index])
        index, total = scores.index[targets], int(np.isfinite(batch.returns).sum())
        if not len(index):
            return torch.zeros((), device=scores.hidden.device)
        value = critic(scores.hidden[torch.from_numpy(targets).to(scores.hidden.device)])
        before, target = (torch.from_numpy(array[index]).to(value) for array in (batch.value, batch.returns))
        loss = value_term(value, before, target, self.value_clip).sum() / total
        self._add("value_loss", float(loss.detach()))
        return loss

    def _measure(self, inputs: TermInputs, scores: Scores) -> None:
        with torch.no_grad():
            self._add("count", float(len(inputs.logprobs)))
            self._add("ratio", float(torch.exp(inputs.logprobs - inputs.old_logprobs).sum()))
            self._add("entropy", float(scores.entropy.sum()))
            if (band := self.loss.clip_band) is not None:
                ratio = torch.exp(inputs.log_ratios)
                self._add("clipped", float(((ratio < 1 - band[0]) | (ratio > 1 + band[1])).sum()))

    def _add(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value


def _take(values: Doubles, scores: Scores) -> torch.Tensor:
    """Select (trained,) values from (tokens,), in the order of the log-probabilities."""
    return torch.from_numpy(values[scores.index]).to(scores.logprob)


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    return tensor.detach().double().cpu().numpy()
