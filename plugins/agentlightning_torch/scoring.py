"""How a model scores a batch: as a forest if its logits allow that, else as rows.

A probe decides. It scores a small batch with branches, with turns, and with a short sequence beside a long one, and compares each
log-probability with a plain pass over that transition alone. The long sequence crosses every length at which the model changes and which
the run can reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from agentlightning.contracts.batch import Batch
from agentlightning.errors import TrainerError, UnsupportedSetting
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.batch.packs import cut_packs, leaf_rows, transition_rows
from agentlightning.testing.rollouts import trajectory, transition
from agentlightning.types import Bools, Doubles
from agentlightning_torch.adapters import plain
from agentlightning_torch.forward import Scores, group_rows, keeping, score_forest, score_rows
from agentlightning_torch.frozen import FrozenStates
from agentlightning_torch.lengths import SHORT, length_of, longest, probe_length, regime, selects, switches
from agentlightning_torch.masks import OwnMask

TRAINED = 70
"""Tokens at the end of a probe that are compared at most: logits of thousands would take gigabytes."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a model scores a batch: the fastest way that is exact for it."""

    forest: bool = True
    single: bool = False
    """Whether each call is a row of its own that goes through the model alone. Other rows share passes, and calls share rows."""
    switched: tuple[int, ...] = ()
    """Lengths beyond which the model takes other rope factors. Sequences on two sides of one are scored apart."""
    longest: int | None = None
    """Tokens of the longest sequence; None: any."""
    reason: str | None = None
    """Why there is no forest."""

    @property
    def way(self) -> str:
        """The way in words."""
        return "forest" if self.forest else "one row for each call" if self.single else "root-to-leaf rows"

    def scores(
        self,
        model: Any,
        batch: Batch,
        tokens_per_pack: int,
        rollouts: Sequence[int] | None = None,
        *,
        entropy: bool = False,
        frozen: FrozenStates | None = None,
    ) -> Iterator[tuple[Scores, int]]:
        """Scores of every pack or group of rows, one at a time, with the tokens computed. `frozen` is of this batch; rows leave it out.

        Raises `TrainerError` for a long sequence.
        """
        if self.longest is not None and len(batch) and (tokens := int(batch.position.max()) + 1) > self.longest:
            raise TrainerError(
                f"A conversation has {tokens} tokens, and this model is defined up to {self.longest}. Shorten the conversations, or drop "
                'them with collection.overlong = "drop".'
            )
        for length, transitions in self._regimes(batch):
            packs = cut_packs(batch, tokens_per_pack, rollouts, transitions)  # also refuses what does not fit
            if self.forest:
                for pack in packs:
                    yield score_forest(model, batch, pack, entropy=entropy, length=length, frozen=frozen), len(pack)
                continue
            rows = (transition_rows if self.single else leaf_rows)(batch, rollouts, transitions)
            for group in group_rows(rows, 0 if self.single else tokens_per_pack):
                yield score_rows(model, batch, group, entropy=entropy, length=length), sum(len(row) for row in group)

    def _regimes(self, batch: Batch) -> Iterator[tuple[int, Bools | None]]:
        """The transitions on each side of the switches, with a length to impose."""
        if not self.switched:
            yield 0, None
            return
        ends = np.zeros(len(batch.completion_ids), np.int64)
        np.maximum.at(ends, batch.transition[batch.trained], batch.position[batch.trained] + 1)
        numbers = np.array([regime(int(end), self.switched) for end in ends])
        for number in np.unique(numbers):
            yield length_of(int(number), self.switched), numbers == number


def find_scoring(model: Any, name: str, tokens_per_pack: int) -> Scoring:
    """The fastest exact scoring of a model for sequences up to `tokens_per_pack`. Raises `UnsupportedSetting` if none is exact."""
    config = plain(model).config
    most = longest(config)
    limit = min(tokens_per_pack, most or tokens_per_pack)
    scoring = Scoring(switched=switches(config), longest=most if most and most < tokens_per_pack else None)
    try:
        probes = [_Probe(model, length) for length in sorted({min(SHORT, limit), probe_length(config, limit)})]
    except Exception as error:  # a model may fail in any way
        raise _refusal(model, name, error) from error

    def fault(scoring: Scoring) -> Exception | None:
        return next((error for probe in probes if (error := probe.fault(scoring))), None)

    picked = selects(config, limit)
    reason = fault(scoring) if picked is None else OwnMask(picked)
    if reason is None:
        return scoring
    scoring = replace(scoring, forest=False, reason=reason_of(reason))
    # A mask made of values may depend on any token of the pass, and a probe can miss that. A model that fails on our masks computes with
    # them, so it may make such a mask.
    if isinstance(reason, NotImplementedError) and not isinstance(reason, OwnMask) and fault(scoring) is None:
        return scoring
    scoring = replace(scoring, single=True)
    if (reason := fault(scoring)) is None:
        return scoring
    raise _refusal(model, name, reason)


def _refusal(model: Any, name: str, error: Exception) -> UnsupportedSetting:
    model_type, reason = plain(model).config.model_type, reason_of(error)
    return UnsupportedSetting(f"The torch trainer cannot train {name!r} ({model_type}): {reason}. Use another model, or trainer 'verl'.")


class _Probe:
    """A small batch, with what a plain pass says of each of its transitions."""

    def __init__(self, model: Any, length: int) -> None:
        self._model, self._length = model, length
        vocabulary = plain(model).config.get_text_config().vocab_size
        ids = np.random.default_rng(0).integers(0, vocabulary, length + 13).tolist()
        path, other = ids[:length], ids[length:]
        self._transitions = [
            transition(0, path[: max(4, length - TRAINED)], path[max(4, length - TRAINED) : -6]),
            transition(1, path[:-3], path[-3:]),  # the next turn
            transition(2, path[: length // 2], other[:4]),  # a branch
            transition(3, other[4:9], other[9:]),  # a short sequence of its own
        ]
        self._batch = make_batch([trajectory(t.index, t) for t in self._transitions], [np.ones(1)] * len(self._transitions))
        self._expected = np.concatenate([plain_logprobs(model, t.prompt_ids, t.response_ids) for t in self._transitions])

    def fault(self, scoring: Scoring) -> Exception | None:
        """What is wrong with a scoring; None: it is exact."""
        values = np.full(len(self._batch), np.nan)
        try:
            with torch.set_grad_enabled(self._length <= SHORT):
                for scores, _ in scoring.scores(self._model, self._batch, 8 * self._length):
                    values[scores.index] = scores.logprob.detach().double().cpu().numpy()
                    if scores.logprob.requires_grad:  # some models have no backward pass in eval mode
                        torch.autograd.grad(scores.logprob.sum(), plain(self._model).get_input_embeddings().weight, allow_unused=True)
        except Exception as error:  # a model may refuse in any way; another way of scoring may work
            return error
        by_transition = self._batch.by_transition(values)
        scored = np.concatenate([by_transition[t.completion_id] for t in self._transitions])
        difference = disagreement(scored, self._expected, next(self._model.parameters()).dtype, self._length)
        return None if difference is None else NotImplementedError(difference)


def reason_of(error: Exception | None) -> str | None:
    """What a probe found, in words."""
    if error is None or isinstance(error, NotImplementedError):
        return None if error is None else str(error)
    return f"its code fails ({type(error).__name__}: {error})"


def plain_logprobs(model: Any, prompt: Any, response: Any) -> Doubles:
    """(response,) log-probabilities of one plain pass over prompt and response."""
    device = next(model.parameters()).device
    ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64)).to(device)
    with torch.no_grad():
        logits = model(input_ids=ids[None], use_cache=False, **keeping(model, len(response) + 1)).logits[0, -len(response) - 1 : -1]
    logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return logprobs.gather(1, ids[len(prompt) :, None])[:, 0].double().cpu().numpy()


def disagreement(values: Doubles, expected: Doubles, dtype: torch.dtype, length: int) -> str | None:
    """Why log-probabilities are not the expected ones; None: they are. 16-bit numbers are compared in the mean."""
    differences = np.abs(values - expected)
    difference, limit = (differences.max(), 1e-3) if torch.finfo(dtype).eps < 1e-6 else (differences.mean(), 0.15)
    return None if difference <= limit else f"its log-probabilities differ by {difference:.2g} on {length} tokens"
