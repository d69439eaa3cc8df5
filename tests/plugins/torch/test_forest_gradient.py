"""The forest gives the gradient of rows: a tiny Llama in float64, over random attempts that branch and take turns."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import chunked_causal_mask_function, sliding_window_causal_mask_function

from agentlightning.contracts.batch import Batch
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.batch.packs import Pack, cut_packs, leaf_rows, transition_rows
from agentlightning.testing.rollouts import trajectory, transition
from agentlightning.types import Transition
from agentlightning_torch import attention
from agentlightning_torch.attention import BLOCK, NAME, Visible, forest_attention, forest_pass
from agentlightning_torch.forward import group_rows, score_forest, score_rows
from agentlightning_torch.masks import PositionMask
from agentlightning_torch.optim import add_lora, trained_parameters


def tiny_llama(**settings) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
        **settings,
    )
    model = LlamaForCausalLM(config)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if "RMSNorm" in type(child).__name__:  # Llama's own rounds to float32 on its way, whatever the model's dtype
                setattr(module, name, torch.nn.RMSNorm(config.hidden_size, config.rms_norm_eps))
    return model.double().eval()


def random_batch(seed: int) -> Batch:
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(40) for _ in range(rng.randint(low, high))]

    found = []
    for group in "ab":
        shared = tokens(2, 12)
        for index in range(3):
            transitions: list[Transition] = []
            histories = [shared]
            for _ in range(rng.randint(1, 4)):
                prompt = rng.choice(histories) + tokens(0, 5)
                response = tokens(1, 6)
                fields = {"logprobs": -3.0, "temperature": rng.choice((0.7, 1.0)), "turn": 0}
                transitions.append(transition(len(transitions), prompt, response, id=f"{group}{index}{len(transitions)}", **fields))
                histories.append(prompt + response)
            found.append(trajectory(index, *transitions, group=group, reward=0.0))
    return make_batch(found, [np.array([rng.uniform(-1, 1) for _ in t.transitions]) for t in found])


def gradient(model, batch: Batch, work: list[list[Pack]], score) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for packs in work:
        scores = score(model, batch, packs)
        advantage, weight = (torch.from_numpy(a[scores.index]) for a in (batch.advantage, batch.weight))
        (-(weight * advantage * torch.exp(scores.logprob - scores.logprob.detach() * 0.9)).sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).norm() / b[n].norm().clamp_min(1e-12)) for n in a)


def forest(block: int = BLOCK, flex: bool = False):
    return lambda model, batch, packs: score_forest(model, batch, packs[0], block=block, flex=flex)


@pytest.mark.parametrize("train", ["full", "top:1", "lora"])
@pytest.mark.parametrize("seed", range(3))
def test_forest_rows_and_transition_rows_have_one_gradient(train: str, seed: int):
    model = tiny_llama()
    if train == "lora":
        model = add_lora(model, 4, 8.0, 0).double()
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)  # zero at first, which would leave half of the gradients zero
    trained_parameters(model, train)
    batch = random_batch(seed)
    reference = gradient(model, batch, group_rows(transition_rows(batch), 100), score_rows)
    assert difference(gradient(model, batch, group_rows(leaf_rows(batch), 100), score_rows), reference) < 1e-10
    assert difference(gradient(model, batch, [[p] for p in cut_packs(batch, 10_000)], forest()), reference) < 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_packs_of_any_size_have_one_gradient(seed: int):
    model, batch = tiny_llama(), random_batch(seed)
    reference = gradient(model, batch, [[p] for p in cut_packs(batch, 10_000)], forest())
    longest = int(batch.position.max()) + 1
    for budget in (longest, longest + 7, 2 * longest):
        packs = cut_packs(batch, budget)
        assert len(packs) > 1
        assert difference(gradient(model, batch, [[p] for p in packs], forest()), reference) < 1e-10


@pytest.mark.parametrize("block", [1, 5, 16, 64])
def test_blocks_of_any_size_give_what_the_dense_mask_gives(block: int):
    model, batch = tiny_llama(), random_batch(4)
    work = [[p] for p in cut_packs(batch, 10_000)]
    (pack,) = work[0]
    assert len(Visible(pack, torch.device("cpu"), block=10_000).under(None).parts) == 1
    assert len(Visible(pack, torch.device("cpu"), block=block).under(None).parts) > 1
    assert difference(gradient(model, batch, work, forest(block)), gradient(model, batch, work, forest(10_000))) < 1e-10


MASKS = {
    "causal": None,
    "window": PositionMask(sliding_window_causal_mask_function(5)),
    "chunks": PositionMask(chunked_causal_mask_function(6, torch.zeros(1, dtype=torch.int64))),
}
"""Masks of layers, by name."""


def sees(pack: Pack, mask: str) -> np.ndarray:
    """(tokens, tokens) which token sees which."""
    i, j = np.arange(len(pack))[:, None], np.arange(len(pack))
    position = pack.position
    narrow = {
        "causal": True,
        "window": position[:, None] - position < 5,
        "chunks": position[:, None] // 6 == position // 6,
    }
    return (j <= i) & (i < pack.end[j]) & narrow[mask]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("block", [1, 7, 30, 10_000])
def test_the_parts_have_each_pair_of_the_mask_once_and_begin_with_all_queries(block: int, mask: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "LONGEST", 4)  # also cut the short segments of this batch
    (pack,) = cut_packs(random_batch(5), 10_000)
    seen, begun = np.zeros((len(pack), len(pack)), int), np.zeros(len(pack), bool)
    for queries, keys, hidden, causal in Visible(pack, torch.device("cpu"), block=block).under(MASKS[mask]).parts:
        assert begun[queries].all() == (queries != keys)
        begun[queries] = True
        pairs = np.ones((queries.stop - queries.start, keys.stop - keys.start), int)
        pairs = np.tril(pairs) if causal else pairs if hidden is None else (hidden == 0).numpy().astype(int)
        assert pairs.any(1).all()
        seen[queries, keys] += pairs
    assert (seen == sees(pack, mask)).all()


@pytest.mark.parametrize("mask", MASKS)
def test_attention_in_parts_is_attention_under_the_dense_mask(mask: str):
    (pack,) = cut_packs(random_batch(5), 10_000)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, len(pack), size) for heads, size in ((4, 8), (2, 8), (2, 5), (4, 5))]
    *inputs, grad = (torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes)
    outs = []
    for parts in (True, False):
        visible = Visible(pack, torch.device("cpu"), block=7, parts=parts)
        assert bool(visible.under(MASKS[mask]).parts) == parts
        with forest_pass(visible):
            outs.append(forest_attention(None, *inputs, MASKS[mask], scaling=0.3)[0])
    dense = visible.under(MASKS[mask]).dense
    assert dense is not None
    assert (dense.numpy() == sees(pack, mask)).all()
    torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(out, inputs, grad.transpose(1, 2)) for out in outs)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-12)


def test_attention_in_parts_rounds_16_bit_numbers_once():
    (pack,) = cut_packs(random_batch(5), 10_000)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, len(pack), 8) for heads in (4, 2, 2, 4)]
    *inputs, grad = (torch.randn(shape, generator=generator).bfloat16().requires_grad_() for shape in shapes)
    visible = Visible(pack, torch.device("cpu"), block=3)
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        own = [x.detach().to(dtype).requires_grad_() for x in inputs]
        with forest_pass(visible):
            out = forest_attention(None, *own, None, scaling=1.0)[0]
        results.append([out.detach(), *torch.autograd.grad(out, own, grad.to(dtype).transpose(1, 2))])
    (ours, *our_gradients), (exact, *exact_gradients) = results
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=1e-6)
    for mine, reference in zip(our_gradients, exact_gradients, strict=True):
        assert (mine.double() - reference).norm() / reference.norm() < 5e-3


def test_a_gradient_in_bfloat16_is_near_that_of_float64():
    batch = random_batch(2)
    model = tiny_llama().bfloat16()
    work = [[pack] for pack in cut_packs(batch, 10_000)]
    ours = gradient(model, batch, work, forest())
    exact = gradient(model.double(), batch, work, forest())
    ours, exact = (torch.cat([value.double().flatten() for value in gradients.values()]) for gradients in (ours, exact))
    assert (ours - exact).norm() / exact.norm() < 0.04


def sliding(model_type: str) -> torch.nn.Module:
    """A model with windows of 5 tokens in some layers."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
        initializer_range=0.2,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text", "olmo3"])
def test_sliding_windows_have_one_gradient_as_a_forest_and_as_rows(model_type: str):
    model, batch = sliding(model_type), random_batch(2)
    assert int(batch.position.max()) > 10
    rows = gradient(model, batch, group_rows(transition_rows(batch), 100), score_rows)
    assert difference(gradient(model, batch, [[p] for p in cut_packs(batch, 10_000)], forest()), rows) < 1e-5  # norms are in float32
    with torch.no_grad():
        (pack,) = cut_packs(batch, 10_000)
        flex, parts, dense = (score_forest(model, batch, pack, **way).logprob for way in ({"flex": True}, {}, {"parts": False}))
    torch.testing.assert_close(flex, parts, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dense, parts, rtol=1e-6, atol=1e-6)


def test_flex_attention_sees_the_same():
    model, batch = tiny_llama(), random_batch(6)
    work = [[p] for p in cut_packs(batch, 10_000)]
    with torch.no_grad():  # on a CPU it has no gradient
        flex, dense = (score_forest(model, batch, work[0][0], flex=flex).logprob for flex in (True, False))
    torch.testing.assert_close(flex, dense, rtol=1e-10, atol=1e-12)


def test_the_model_is_as_before_after_a_pass():
    model, batch = tiny_llama(), random_batch(0)
    before = model.config._attn_implementation
    score_forest(model, batch, cut_packs(batch, 10_000)[0])
    assert model.config._attn_implementation == before != NAME


def test_a_head_that_scales_its_logits_is_scaled_here_too():
    from transformers import GraniteConfig, GraniteForCausalLM

    settings = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model, batch = GraniteForCausalLM(GraniteConfig(**settings, logits_scaling=8.0)).eval().double(), random_batch(3)
    (pack,) = cut_packs(batch, 10_000)
    row = next(r for r in leaf_rows(batch) if r.trained.any())
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(batch.token_ids[row.index].astype(np.int64))[None]).logits[0]
        forest, rows = score_forest(model, batch, pack), score_rows(model, batch, [row])
    trained = np.flatnonzero(row.trained)
    temperature = torch.from_numpy(batch.temperature[row.index[trained]]).double()
    every = torch.log_softmax(logits[trained - 1] / temperature[:, None], -1)
    expected = every.gather(1, torch.from_numpy(batch.token_ids[row.index[trained]].astype(np.int64))[:, None])[:, 0]
    torch.testing.assert_close(rows.logprob, expected, rtol=1e-10, atol=1e-10)
    of_row = np.searchsorted(forest.index, rows.index)
    torch.testing.assert_close(forest.logprob[of_row], expected, rtol=1e-10, atol=1e-10)
