"""Computes log-probabilities of the trained tokens of packs.

A token's log-probability comes from the logits at its parent, divided by its sampling temperature. The model is in eval mode, because
dropout would make trainer and engine disagree. The head runs only where it predicts a trained token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agentlightning.contracts.batch import Batch
from agentlightning.rl.batch.packs import Pack
from agentlightning_torch.adapters import plain
from agentlightning_torch.attention import FLEX_MULTIPLE, Visible, using_forest
from agentlightning_torch.frozen import FrozenStates
from agentlightning_torch.lengths import imposed_length
from agentlightning_torch.masks import one_sequence
from agentlightning_torch.own_layers import layer_of_pass
from agentlightning_torch.reading import read

PLAIN_HEAD = "_agentlightning_plain_head"
"""Model attribute with the result of `_has_plain_head`."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """The model's outputs for trained tokens of some packs."""

    index: NDArray[np.int64]
    """(trained,) indices of the tokens in the batch."""
    logprob: torch.Tensor
    """(trained,) log-probabilities with gradient, at least float32."""
    entropy: torch.Tensor
    """(trained,) entropy in nats of the distribution that each token was sampled from; with gradient on request."""
    hidden: torch.Tensor
    """(trained, hidden) the state that predicts each token; without gradient."""


def score_forest(
    model: Any, batch: Batch, pack: Pack, *, entropy: bool = False, length: int = 0, frozen: FrozenStates | None = None, **attention: Any
) -> Scores:
    """Compute the scores of one pack as a forest. With `entropy`, the entropy has a gradient.

    `length` goes to `imposed_length`, and `attention` to `Visible`. `frozen` keeps states of this batch. A model that cannot be computed as
    a forest may raise any exception.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        pack = _padded(pack)
    trained = np.flatnonzero(pack.trained)
    keep, row = np.unique(pack.parent[trained], return_inverse=True)
    ids = _tensor(batch.token_ids[pack.index], device)[None]
    lean = _has_plain_head(model)
    below = nullcontext() if frozen is None else frozen.over(_tensor(pack.index, device), length)
    with using_forest(plain(model), Visible(pack, device, **attention)), imposed_length(model, length), below:
        predicting = _predicting(
            model,
            _tensor(keep, device),
            lean,
            input_ids=ids,
            position_ids=_tensor(pack.position, device)[None],
            attention_mask=one_sequence(ids),
        )
    return _scores(model, batch, pack.index[trained], predicting, row, entropy)


def score_rows(model: Any, batch: Batch, rows: Sequence[Pack], *, entropy: bool = False, length: int = 0) -> Scores:
    """Compute the scores of rows, each a single path, right-padded to the longest. With `entropy`, the entropy has a gradient.

    `length` goes to `imposed_length`.
    """
    device = next(model.parameters()).device
    longest = max(len(r) for r in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for number, r in enumerate(rows):
        ids[number, : len(r)] = batch.token_ids[r.index]
        mask[number, : len(r)] = 1
    trained = [np.flatnonzero(r.trained) for r in rows]
    places = np.concatenate(trained) - 1
    keep, column = np.unique(places, return_inverse=True)
    number = np.repeat(np.arange(len(rows)), [len(t) for t in trained])
    padding = None if len(rows) == 1 else _tensor(mask, device)
    lean = _has_plain_head(model)
    with imposed_length(model, length):
        predicting = _predicting(model, _tensor(keep, device), lean, input_ids=_tensor(ids, device), attention_mask=padding)
    index = np.concatenate([r.index[t] for r, t in zip(rows, trained, strict=True)])
    return _scores(model, batch, index, predicting, number * len(keep) + column, entropy)


def group_rows(rows: Sequence[Pack], tokens_per_pack: int) -> list[list[Pack]]:
    """Group the rows with trained tokens, longest first. Each group holds at most `tokens_per_pack` tokens with padding."""
    groups: list[list[Pack]] = []
    for row in sorted((r for r in rows if r.trained.any()), key=len, reverse=True):
        if groups and len(groups[-1][0]) * (len(groups[-1]) + 1) <= tokens_per_pack:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


@contextmanager
def head_input(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collect the head's inputs within the block: the last hidden state, only where logits are computed."""
    seen: list[torch.Tensor] = []

    def look(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(arguments[0])

    hook = plain(model).get_output_embeddings().register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def _predicting(model: Any, keep: torch.Tensor, lean: bool, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the states (places, size) that predict the tokens after `keep` in every row, and their logits.

    Logits are computed only if they are more than the head of these states (`lean` is false).
    """
    inner = plain(model)
    if lean:
        return inner.get_decoder()(**inputs, use_cache=False).last_hidden_state[:, keep].flatten(0, 1), None
    rows, keeps = len(inputs["input_ids"]), keeping(model, keep)
    with head_input(model) as seen:
        logits = model(**inputs, **keeps, use_cache=False).logits
    states = seen[0].reshape(rows, -1, seen[0].shape[-1])
    if not keeps:
        states, logits = states[:, keep], logits[:, keep]
    return states.flatten(0, 1), logits.flatten(0, 1)


def keeping(model: Any, logits: torch.Tensor | int) -> dict[str, Any]:
    """Return the argument for computing only these logits, or that many at the end. Without such an argument, it is empty."""
    return {"logits_to_keep": logits} if "logits_to_keep" in signature(plain(model).forward).parameters else {}


def _has_plain_head(model: Any) -> bool:
    """Return True if a model's logits are just the head of the decoder's last states (no scale, no cap). Tested once."""
    inner = plain(model)
    if not hasattr(inner, PLAIN_HEAD):
        ids = torch.arange(4, device=next(model.parameters()).device)[None]
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
            try:
                ours = inner.get_output_embeddings()(inner.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
            except Exception:  # what a model calls its decoder may be any part of it
                ours = logits.new_empty(0)
        setattr(inner, PLAIN_HEAD, ours.shape == logits.shape and torch.allclose(ours.float(), logits.float(), rtol=1e-3, atol=1e-3))
    return getattr(inner, PLAIN_HEAD)


def _scores(
    model: Any,
    batch: Batch,
    index: NDArray[Any],
    predicting: tuple[torch.Tensor, torch.Tensor | None],
    place: NDArray[np.int64],
    with_entropy: bool,
) -> Scores:
    """Compute scores from states and logits (places, ...). `place` predicts the token `index`."""
    states, logits = predicting
    head = layer_of_pass(plain(model).get_output_embeddings())
    where, chosen = _tensor(place, states.device), _tensor(batch.token_ids[index], states.device)
    own = states[where]
    temperature = torch.from_numpy(batch.temperature[index]).to(states.device, torch.promote_types(states.dtype, torch.float32))
    vocabulary = head.weight.shape[0] if logits is None else logits.shape[-1]
    if logits is None:
        frozen = not any(parameter.requires_grad for parameter in head.parameters())
        logprob, entropy = read(head, own, vocabulary, chosen, temperature, with_entropy, frozen)
    else:
        logprob, entropy = read(lambda rows: rows, logits[where], vocabulary, chosen, temperature, with_entropy)
    return Scores(index.astype(np.int64), logprob, entropy, own.detach())


def _tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(device)


def _padded(pack: Pack) -> Pack:
    """Return the pack, padded with one-token roots to the multiple that FlexAttention compiles for."""
    extra = -len(pack) % FLEX_MULTIPLE
    size = len(pack)
    return Pack(
        np.append(pack.index, np.zeros(extra, np.int32)),
        np.append(pack.parent, np.full(extra, -1, np.int32)),
        np.append(pack.position, np.zeros(extra, np.int32)),
        np.append(pack.end, np.arange(size + 1, size + extra + 1, dtype=np.int32)),
        np.append(pack.trained, np.zeros(extra, np.bool_)),
    )
