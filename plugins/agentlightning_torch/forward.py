"""Log-probabilities of the trained tokens of packs.

The log-probability of a token comes from the logits at its parent, divided by the temperature at which it was sampled. The model is in
eval mode: dropout would make trainer and engine disagree. The head runs only where a trained token is predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agentlightning.handover import Probe, probe_ids
from agentlightning.rl.batch import Batch
from agentlightning.rl.packs import Pack
from agentlightning_torch.attention import FLEX_MULTIPLE, Visible, using_forest


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What the model says of the trained tokens of some packs."""

    index: NDArray[np.int64]
    """(trained,) index of the token in the batch."""
    logprob: torch.Tensor
    """(trained,) with gradient, at least float32."""
    entropy: torch.Tensor
    """(trained,) of the distribution that the token was sampled from, nats; with gradient where it is asked for."""
    hidden: torch.Tensor
    """(trained, hidden) the state that predicts the token; without gradient."""


def plain(model: Any) -> Any:
    """The transformers model itself, also inside peft."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def score_forest(
    model: Any, batch: Batch, pack: Pack, *, block: int | None = None, flex: bool | None = None, entropy: bool = False
) -> Scores:
    """Scores of one pack, computed as a forest. `entropy`: with its gradient."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        pack = _padded(pack)
    visible = Visible(pack, device, flex=flex) if block is None else Visible(pack, device, block=block, flex=flex)
    trained = np.flatnonzero(pack.trained)
    keep, row = np.unique(pack.parent[trained], return_inverse=True)
    with using_forest(plain(model)), head_input(model) as seen:
        logits = model(
            input_ids=_tensor(batch.token_ids[pack.index], device)[None],
            position_ids=_tensor(pack.position, device)[None],
            logits_to_keep=_tensor(keep, device),
            use_cache=False,
            forest=visible,
        ).logits[0]
    hidden = seen[0][0].detach()
    if not np.array_equal(row, np.arange(len(keep))):  # siblings are predicted from one place, and a branch goes back
        logits, hidden = logits[_tensor(row, device)], hidden[_tensor(row, device)]
    return _scores(batch, pack.index[trained], logits, hidden, entropy)


def score_rows(model: Any, batch: Batch, rows: Sequence[Pack], *, entropy: bool = False) -> Scores:
    """Scores of some rows, each a single path, padded on the right to the longest. `entropy`: with its gradient."""
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
    with head_input(model) as seen:
        logits = model(
            input_ids=_tensor(ids, device),
            attention_mask=None if len(rows) == 1 else _tensor(mask, device),
            logits_to_keep=_tensor(keep, device),
            use_cache=False,
        ).logits
    place = _tensor(number, device), _tensor(column, device)
    index = np.concatenate([r.index[t] for r, t in zip(rows, trained, strict=True)])
    return _scores(batch, index, logits[place], seen[0].detach()[place], entropy)


def group_rows(rows: Sequence[Pack], max_tokens: int) -> list[list[Pack]]:
    """Rows that train something, longest first, in groups that hold at most `max_tokens` with their padding."""
    groups: list[list[Pack]] = []
    for row in sorted((r for r in rows if r.trained.any()), key=len, reverse=True):
        if groups and len(groups[-1][0]) * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def forest_agrees(model: Any, device: torch.device, dtype: torch.dtype) -> str | None:
    """None when the model gives a small forest the logits that it gives its rows; else why a forest cannot be used."""
    rng = np.random.default_rng(0)
    # two replies of 3 tokens below one prompt of 6, in the order of a forest
    parent = np.array([-1, 0, 1, 2, 3, 4, 5, 6, 7, 5, 9, 10], np.int32)
    position = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8], np.int32)
    end = np.array([12] * 6 + [9] * 3 + [12] * 3, np.int32)
    pack = Pack(np.arange(12, dtype=np.int32), parent, position, end, np.zeros(12, np.bool_))
    ids = _tensor(rng.integers(0, plain(model).config.get_text_config().vocab_size, 12), device)
    second = [0, 1, 2, 3, 4, 5, 9, 10, 11]
    try:
        with torch.no_grad(), using_forest(plain(model)):
            forest = model(
                input_ids=ids[None],
                position_ids=_tensor(position, device)[None],
                use_cache=False,
                forest=Visible(pack, device, block=4, flex=False),
            ).logits[0, second]
        with torch.no_grad():
            row = model(input_ids=ids[second][None], use_cache=False).logits[0]
    except Exception as error:  # a model may refuse in any way; the rows are then what works
        return f"{type(error).__name__}: {error}"
    tolerance = 1e-3 if torch.finfo(dtype).eps < 1e-6 else 0.1
    difference = float((forest - row).abs().max() / row.abs().max().clamp_min(1e-9))
    return None if difference <= tolerance else f"its logits differ by {difference:.2g} of the largest"


def probe_of(model: Any) -> Probe:
    """What the model makes of the tokens of a probe, at temperature 1."""
    ids = probe_ids(plain(model).config.get_text_config().vocab_size)
    with torch.no_grad():
        logits = model(input_ids=_tensor(ids, next(model.parameters()).device)[None], use_cache=False).logits[0, :-1].float()
    chosen = logits.log_softmax(-1).gather(1, _tensor(ids[1:], logits.device)[:, None])[:, 0]
    return Probe(ids, chosen.double().cpu().numpy())


@contextmanager
def head_input(model: Any) -> Iterator[list[torch.Tensor]]:
    """What the model's head is given within the block: the last hidden state where logits are computed, and only there."""
    seen: list[torch.Tensor] = []

    def look(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(arguments[0])

    hook = plain(model).get_output_embeddings().register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def _scores(batch: Batch, index: NDArray[Any], logits: torch.Tensor, hidden: torch.Tensor, with_entropy: bool) -> Scores:
    """From logits (trained, vocabulary), each the prediction of the token `index`."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    temperature = batch.temperature[index]
    if not (temperature == 1).all():
        logits = logits / torch.from_numpy(temperature.copy()).to(logits)[:, None]
    every = torch.log_softmax(logits, -1)
    with nullcontext() if with_entropy else torch.no_grad():
        entropy = -(every.exp() * every).sum(-1)
    chosen = every.gather(1, _tensor(batch.token_ids[index], logits.device)[:, None])[:, 0]
    return Scores(index.astype(np.int64), chosen, entropy, hidden)


def _tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(device)


def _padded(pack: Pack) -> Pack:
    """The pack with roots of one token each behind it, up to the multiple that FlexAttention compiles for."""
    extra = -len(pack) % FLEX_MULTIPLE
    size = len(pack)
    return Pack(
        np.append(pack.index, np.zeros(extra, np.int32)),
        np.append(pack.parent, np.full(extra, -1, np.int32)),
        np.append(pack.position, np.zeros(extra, np.int32)),
        np.append(pack.end, np.arange(size + 1, size + extra + 1, dtype=np.int32)),
        np.append(pack.trained, np.zeros(extra, np.bool_)),
    )
