"""Products of few rows by oneDNN: the same results, and plain layers wherever they do not apply."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agentlightning.types import Sampling, ints
from agentlightning_torch import products
from agentlightning_torch.adapters import adapted_layers
from agentlightning_torch.engine import TorchEngine, TorchEngineSettings
from agentlightning_torch.optim import add_lora
from agentlightning_torch.products import HAS_ONEDNN, MOST_ROWS, NARROW, WORTH, FewRowsLinear, onednn_speedup, use_faster_products
from agentlightning_torch.testing import tiny_model
from agentlightning_torch.weights import get_weights

needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="torch has no oneDNN")


def faster(layer: nn.Module) -> nn.Module:
    layer = copy.deepcopy(layer)
    for module in layer.modules():
        if type(module) is nn.Linear:
            module.__class__ = FewRowsLinear
    return layer


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """The numbers of rows that oneDNN multiplied."""
    rows: list[int] = []
    plain = products.onednn_linear

    def counted(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(x.numel() // x.shape[-1])
        return plain(x, *rest)

    monkeypatch.setattr(products, "onednn_linear", counted)
    return rows


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 5), (1, MOST_ROWS), (2, 3, 7)])
def test_few_rows_have_the_product_of_float64(calls: list[int], shape: tuple[int, ...], bias: bool):
    layer = nn.Linear(33, 50, bias=bias)
    x = torch.randn(*shape, 33)
    with torch.no_grad():
        found = faster(layer)(x)
        exact = copy.deepcopy(layer).double()(x.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    assert calls == [int(np.prod(shape))]


@needs_onednn
def test_all_else_is_a_plain_layer(calls: list[int]):
    layer = nn.Linear(32, 8)
    quick = faster(layer)
    x = torch.randn(4, 32)
    with torch.no_grad():
        for other in (torch.randn(MOST_ROWS + 1, 32), torch.randn(0, 32), torch.randn(32, 4).t()):
            torch.testing.assert_close(quick(other), layer(other), rtol=0, atol=0)
        for dtype in (torch.float64, torch.bfloat16):
            twin = copy.deepcopy(layer).to(dtype)
            torch.testing.assert_close(faster(twin)(x.to(dtype)), twin(x.to(dtype)), rtol=0, atol=0)
    ours, theirs = (each(x).square().sum() for each in (quick, layer))
    gradients = (torch.autograd.grad(loss, list(each.parameters())) for loss, each in ((ours, quick), (theirs, layer)))
    torch.testing.assert_close(*gradients)
    assert calls == []


def test_layers_are_replaced_only_where_it_pays(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    for speedup, width in ((WORTH - 0.01, NARROW), (WORTH, NARROW - 1)):
        monkeypatch.setattr(products, "onednn_speedup", lambda width, speedup=speedup: speedup)
        use_faster_products(model, width)
        assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear]
    use_faster_products(model, NARROW)
    assert [type(module) for module in model] == [FewRowsLinear, nn.ReLU, FewRowsLinear]


def test_an_adapter_lies_on_the_same_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(products, "NARROW", 1)
    models = []
    for speedup in (0.0, WORTH):
        monkeypatch.setattr(products, "onednn_speedup", lambda width, speedup=speedup: speedup)
        models.append(add_lora(get_weights({}, tiny_model(tmp_path)).model, 2, 4.0, seed=0))
    plain, quick = models
    assert [type(layer) for layer in adapted_layers(quick)] == [type(layer) for layer in adapted_layers(plain)] != []
    assert {type(layer.base_layer) for layer in adapted_layers(quick)} == {FewRowsLinear}
    assert plain.state_dict().keys() == quick.state_dict().keys()
    ids = torch.arange(1, 6)[None]
    with torch.no_grad():
        torch.testing.assert_close(quick(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_the_speedup_is_measured_on_this_machine():
    assert (onednn_speedup(512) > 0.1) == HAS_ONEDNN


@needs_onednn
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
async def test_an_engine_multiplies_a_float32_model_so_and_its_copies_too(tmp_path, monkeypatch, calls: list[int], dtype: str):
    monkeypatch.setattr(products, "NARROW", 1)
    monkeypatch.setattr(products, "onednn_speedup", lambda width: WORTH)
    files = tiny_model(tmp_path)
    share: dict[str, object] = {}
    get_weights(share, files, dtype=dtype)
    engine = await TorchEngine.create(files, TorchEngineSettings(dtype=dtype, copy_weights=True), share)
    calls.clear()
    ids = ints(np.arange(1, 9))
    chunks = [chunk async for chunk in engine.generate(ids, Sampling(max_tokens=6, seed=1))]
    await engine.close()
    assert bool(calls) == (dtype == "float32")
    tokens, logprobs = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("ids", "logprobs"))
    exact = get_weights({}, files, dtype="float64").model
    whole = torch.from_numpy(np.concatenate([ids, tokens]).astype(np.int64))
    with torch.no_grad():
        every = torch.log_softmax(exact(input_ids=whole[None]).logits[0, len(ids) - 1 : -1], -1)
    expected = every.gather(1, whole[len(ids) :, None])[:, 0].numpy()
    np.testing.assert_allclose(logprobs, expected, atol=0.1 if dtype == "bfloat16" else 1e-4)
