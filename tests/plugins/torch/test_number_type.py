"""The number type of weights: `auto` measures, and 16-bit weights train in float32."""

from __future__ import annotations

import pytest
import torch

from agentlightning.errors import ConfigError
from agentlightning_torch.number_type import NARROW, WORTH, bfloat16_speedup, number_type
from agentlightning_torch.optim import Optimizer

CPU = torch.device("cpu")


def test_auto_takes_bfloat16_on_a_cpu_only_where_a_product_is_faster():
    assert number_type("auto", CPU, 1024) is (torch.bfloat16 if bfloat16_speedup(1024) >= WORTH else torch.float32)
    assert number_type("auto", CPU, NARROW - 1) is torch.float32


def test_a_named_type_is_taken_as_it_is_and_an_unknown_one_is_refused():
    assert number_type("bfloat16", CPU, 8) is torch.bfloat16
    with pytest.raises(ConfigError, match="dtype 'half' is unknown"):
        number_type("half", CPU, 8)


def test_gradients_of_16_bit_weights_add_up_in_float32():
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = Optimizer({"weight": weight}, lr=1.0, clip_norm=10.0)
    for gradient in (1.0, *[2.0**-9] * 256):  # in bfloat16, 1 + 2^-9 is 1
        (weight * gradient).sum().backward()
    assert optimizer.step(1.0) == 1.5
    assert weight.grad is None
