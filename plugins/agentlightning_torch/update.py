"""One training step on a batch: what it computes before the first gradient, the gradients, and what it measures.

The loss is a sum over trained tokens with weights that are fixed on the full batch, so any split into packs has the same gradient. What a
sequence decides (GSPO, corrections of whole replies), or a pair (DPO), is decided in passes without gradient, before a pack of it is
differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agentlightning.errors import NonFinite, TrainerError
from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import Level
from agentlightning.rl.correction import sums
from agentlightning.rl.loss import DPOLoss
from agentlightning.contracts.loss import LossSettings
from agentlightning_torch.critic import ValueHead
from agentlightning_torch.forward import Scores
from agentlightning_torch.losses import term_of
from agentlightning_torch.losses.dpo import margins
from agentlightning_torch.losses.kl import kl_term
from agentlightning_torch.losses.value import value_term

Doubles = NDArray[np.float64]
Score = Callable[[Sequence[int] | None, bool], Iterator[tuple[Scores, int]]]
"""Scores of every pack that some rollouts (None: all) have, one at a time, with the tokens computed; with the entropy's gradient, or
not."""


@dataclass(slots=True, eq=False)
class Update:
    """One use for each step."""

    batch: Batch
    loss: LossSettings
    score: Score
    score_reference: Score
    critic: ValueHead | None = None
    value_clip: float | None = None

    parts: list[list[int]] = field(init=False)
    """Rollouts of each minibatch."""
    old: Doubles = field(init=False)
    """(tokens,) the trainer's log-probabilities before the first optimiser step; NaN where not trained."""
    reference: Doubles = field(init=False)
    """(tokens,) the reference's log-probabilities."""
    corrections: Doubles = field(init=False)
    """(tokens,) c; NaN where it is not known yet."""
    known: bool = False
    """Whether `old` is there before the first gradient."""
    tokens: int = 0
    """Computed so far."""
    passes: float = 0.0
    """Over the whole batch."""
    norms: list[float] = field(default_factory=list[float])
    sums: dict[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        count = self.loss.minibatches
        pairs = self.batch.pairs
        together: list[list[int]] = [[each] for each in range(len(self.batch.rollout_ids))] if pairs is None else pairs.tolist()
        parts = ([each for some in together[k::count] for each in some] for k in range(count))
        self.parts = [part for part in parts if part]
        self.old, self.reference, self.corrections = (np.full(len(self.batch), np.nan) for _ in range(3))

    @property
    def several(self) -> bool:
        """Whether the weights change within the step."""
        return self.loss.epochs * len(self.parts) > 1

    def prepare(self) -> None:
        """What is computed with the weights as they are before the step."""
        correction = self.loss.correction
        if self.several or self.loss.over_pairs or (correction is not None and correction.over != "token"):
            self._pass(self.score, None, self.old)
            self.known = True
        if self.loss.kl_coef or self.loss.over_pairs:
            self._pass(self.score_reference, None, self.reference)
        if self.known:
            self._correct(np.flatnonzero(self.batch.trained))

    def gradient(self, part: int) -> None:
        """Add the gradient of a minibatch, as an estimate of the full loss, to the parameters."""
        batch, loss, term = self.batch, self.loss, term_of(self.loss)
        rollouts = self.parts[part] if len(self.parts) > 1 else None
        scale = float(len(self.parts))
        of_sequence, of_pair = self._sequence_ratios(rollouts), self._margins(part) if loss.over_pairs else None
        self._count_pass(rollouts)
        for scores, tokens in self.score(rollouts, bool(loss.entropy_coef)):
            self.tokens += tokens
            now, index = scores.logprob, scores.index
            if not self.known:
                self.old[index] = _numpy(now)
                self._correct(index)
            old = self._tensor(self.old, index, now) if self.known else now.detach()
            against = old if of_sequence is None else now.detach() - self._tensor(of_sequence, index, now)
            if of_pair is not None:
                against = self._tensor(of_pair, index, now)
            advantage, weight, c = (self._tensor(each, index, now) for each in (batch.advantage, batch.weight, self.corrections))
            made = term(now, against, advantage)
            if getattr(made, "shape", None) != now.shape:
                said = f"a tensor of shape {tuple(made.shape)}" if hasattr(made, "shape") else repr(made)[:80]
                raise TrainerError(f"loss {loss.name!r} gave {said} for {len(now)} tokens; expected the term of each")
            policy = (weight * c * made).sum()
            value = policy
            if loss.kl_coef:
                divergence = kl_term(loss.kl_estimator, now, self._tensor(self.reference, index, now))
                value = value + loss.kl_coef * (weight * divergence).sum()
                self._add("kl", float(divergence.detach().sum()))
            if loss.entropy_coef:
                value = value - loss.entropy_coef * (weight * scores.entropy).sum()
            if not torch.isfinite(value):
                where = batch.completion_ids[int(batch.transition[index[0]])]
                raise NonFinite(
                    f"the loss is {float(value.detach())} in a pack of {tokens} tokens (completion {where}); the weights are as before"
                )
            self._add("loss", float(value.detach()))
            self._measure(scores, old, against)
            if self.critic is not None and batch.returns is not None:
                value = value + self._critic(scores)
            (value * scale).backward()

    def values(self) -> Doubles:
        """(tokens,) what the critic says; NaN where nothing is trained."""
        assert self.critic is not None
        found = np.full(len(self.batch), np.nan)
        with torch.no_grad():
            for scores, _ in self.score(None, False):
                found[scores.index] = _numpy(self.critic(scores.hidden))
        return found

    def metrics(self, version: int) -> dict[str, float]:
        """`mismatch_abs` compares trainer and engine: |old - recorded|, `mismatch_kl` is Schulman's k3 estimate of KL(recorded, old), on
        tokens that the
        very same version sampled. `off_policy_*` is the same on those of others, which are meant to differ. Demonstrations were
        sampled by no engine, so there is nothing to compare."""
        batch, total = self.batch, self.sums
        count, updates = total["count"], len(self.norms)
        sampled = batch.trained & np.isfinite(batch.logprob)
        leaf = batch.end == np.arange(1, len(batch) + 1)
        found = {
            "loss": total["loss"] / self.loss.epochs,
            "grad_norm": float(np.mean(self.norms)),
            "tokens": float(self.tokens),
            "tokens_trained": float(batch.trained_tokens),
            "tokens_context": float(len(batch) - batch.trained_tokens),
            "forest_saving": float((batch.position[leaf] + 1).sum() / len(batch)),
            "entropy": total["entropy"] / count,
        }
        if sampled.any():
            log_ratio, gap = self.old[sampled] - batch.logprob[sampled], version - batch.version[sampled]
            for name, ratios in (("mismatch", log_ratio[gap == 0]), ("off_policy", log_ratio[gap != 0])):
                if len(ratios):
                    found[f"{name}_abs"] = float(np.abs(ratios).mean())
                    found[f"{name}_abs_max"] = float(np.abs(ratios).max())
                    found[f"{name}_kl"] = float((np.expm1(ratios) - ratios).mean())
            known = gap[batch.version[sampled] >= 0]
            if len(known):
                found |= {"version_gap_mean": float(known.mean()), "version_gap_max": float(known.max())}
            if self.loss.correction is not None:
                weights = self.corrections[sampled]
                found |= {"correction_mean": float(weights.mean()), "correction_dropped": float((weights == 0).mean())}
        if self.loss.kl_coef:
            found["kl"] = total["kl"] / count
        if updates > 1:  # at the first update the ratio is 1 by definition
            found["ratio_mean"] = total["ratio"] / count
            if "clipped" in total:
                found["clip_fraction"] = total["clipped"] / count
        if "pairs" in total:
            found |= {"dpo_accuracy": total["preferred"] / total["pairs"], "dpo_margin": total["margin"] / total["pairs"]}
        if "value_loss" in total:
            assert batch.returns is not None
            assert batch.value is not None
            known = np.isfinite(batch.returns)
            spread = float(np.var(batch.returns[known]))
            found["value_loss"] = total["value_loss"] / self.loss.epochs
            if spread > 0:
                found["explained_variance"] = 1 - float(np.var((batch.returns - batch.value)[known])) / spread
        return found

    # --- inside ---

    def _pass(self, score: Score, rollouts: Sequence[int] | None, into: Doubles) -> None:
        """Log-probabilities without gradient."""
        self._count_pass(rollouts)
        with torch.no_grad():
            for scores, tokens in score(rollouts, False):
                self.tokens += tokens
                into[scores.index] = _numpy(scores.logprob)

    def _count_pass(self, rollouts: Sequence[int] | None) -> None:
        self.passes += 1 if rollouts is None else 1 / len(self.parts)

    def _correct(self, index: NDArray[Any]) -> None:
        """Set c of some tokens, whose `old` is known."""
        self.corrections[index] = 1.0
        correction = self.loss.correction
        if correction is None:
            return
        index = index[np.isfinite(self.batch.logprob[index])]
        if len(index):
            log_ratio = self.old[index] - self.batch.logprob[index]
            self.corrections[index] = correction.weights(log_ratio, self._sequences(correction.over, index))

    def _sequences(self, over: Level, index: NDArray[Any]) -> NDArray[np.int64]:
        """(tokens,) number of the sequence that each of some tokens belongs to."""
        if over == "token":
            return np.arange(len(index))
        turns = self.batch.transition[index].astype(np.int64)
        return turns if over == "turn" else self.batch.transition_rollout[turns].astype(np.int64)

    def _sequence_ratios(self, rollouts: Sequence[int] | None) -> Doubles | None:
        """(tokens,) the log-ratio of each token's sequence with the weights as they are now; None where each token has its own."""
        if self.loss.ratio_over == "token":
            return None
        found = np.zeros(len(self.batch))
        if not self.norms:  # before the first update every ratio is 1
            return found
        now = np.full(len(self.batch), np.nan)
        self._pass(self.score, rollouts, now)
        index = np.flatnonzero(np.isfinite(now))
        found[index] = sums(now[index] - self.old[index], self._sequences(self.loss.ratio_over, index), mean=True)
        return found

    def _margins(self, part: int) -> Doubles:
        """(tokens,) z of each token's pair with the weights as they are now, those of a minibatch; measured there."""
        assert self.batch.pairs is not None
        assert isinstance(self.loss, DPOLoss)
        now = self.old
        if self.norms:
            now = np.full(len(self.batch), np.nan)
            self._pass(self.score, self.parts[part] if len(self.parts) > 1 else None, now)
        each, of_token = margins(self.batch, self.loss.beta, now - self.reference)
        z = each[np.isin(self.batch.pairs[:, 0], self.parts[part])]
        self._add("loss", float(np.logaddexp(0, -z).sum()) / len(each))
        self._add("pairs", len(z))
        self._add("preferred", float((z > 0).sum()))
        self._add("margin", float(z.sum()))
        return of_token

    def _critic(self, scores: Scores) -> torch.Tensor:
        """The value loss of a pack: the mean over all that the batch gives to learn. No gradient of it reaches the policy."""
        batch = self.batch
        assert self.critic is not None
        assert batch.returns is not None
        assert batch.value is not None
        learns = np.isfinite(batch.returns[scores.index])
        index, total = scores.index[learns], int(np.isfinite(batch.returns).sum())
        if not len(index):
            return torch.zeros((), device=scores.hidden.device)
        value = self.critic(scores.hidden[torch.from_numpy(learns).to(scores.hidden.device)])
        before, target = (self._tensor(each, index, value) for each in (batch.value, batch.returns))
        term = value_term(value, before, target, self.value_clip).sum() / total
        self._add("value_loss", float(term.detach()))
        return term

    def _measure(self, scores: Scores, old: torch.Tensor, against: torch.Tensor) -> None:
        with torch.no_grad():
            ratio = torch.exp(scores.logprob - old)
            clipped = torch.exp(scores.logprob - against)
            self._add("count", float(len(ratio)))
            self._add("ratio", float(ratio.sum()))
            self._add("entropy", float(scores.entropy.sum()))
            low, high = getattr(self.loss, "clip_low", None), getattr(self.loss, "clip_high", None)
            if low is not None and high is not None:
                self._add("clipped", float(((clipped < 1 - low) | (clipped > 1 + high)).sum()))

    def _add(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value

    def _tensor(self, values: Doubles, index: NDArray[Any], like: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(values[index]).to(like)


def _numpy(tensor: torch.Tensor) -> Doubles:
    return tensor.detach().double().cpu().numpy()
