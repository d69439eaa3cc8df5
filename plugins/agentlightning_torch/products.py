"""Products of few tokens with large weights, in float32 on a CPU: by oneDNN where it is faster.

torch multiplies float32 with MKL. On a CPU without AVX-512, MKL took up to twice as long as oneDNN for 1 to 64 rows, which a decode step
has. In bfloat16, torch uses oneDNN anyway.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from agentlightning_torch.number_type import NARROW, speedup

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether torch has oneDNN's product of dense tensors. It is private to torch, and all versions since 2.1 have it."""
MOST_ROWS = 256
"""With more rows, MKL is as fast."""
WORTH = 1.15
"""oneDNN is used if it multiplies at least this many times faster."""
ROWS, NUMBERS = 32, 2**24
"""Rows of the timed product, as in a decode step, and numbers of its weights. They do not fit into a cache, just like those of a model."""


class FewRowsLinear(nn.Linear):
    """A layer that multiplies few rows with oneDNN. With gradients, and for all other tensors, it is a plain one."""

    def forward(self, input: Tensor) -> Tensor:
        """See `torch.nn.Linear`."""
        if torch.is_grad_enabled() or not _fits(input, self.weight):
            return linear(input, self.weight, self.bias)
        return onednn_linear(input, self.weight, self.bias)


PLAIN = (nn.Linear, FewRowsLinear)
"""Layers that compute `linear` of their weight and nothing else."""


def use_faster_products(model: nn.Module, width: int) -> None:
    """Have the layers of a float32 model on the CPU multiply few rows with oneDNN, if that is faster here. `width`: hidden size."""
    if width < NARROW or onednn_speedup(width) < WORTH:
        return
    for module in model.modules():
        if type(module) is nn.Linear:  # with a class of their own, copies and adapters of the model keep working
            module.__class__ = FewRowsLinear


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what `linear` returns, for contiguous float32 tensors on a CPU, without gradients."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def onednn_speedup(width: int) -> float:
    """Return how many times faster than MKL oneDNN multiplies few rows here; 0: torch has none."""
    if not HAS_ONEDNN:
        return 0.0
    x, weight = torch.ones(ROWS, width), torch.ones(NUMBERS // width, width)
    return speedup(partial(linear, x, weight), partial(onednn_linear, x, weight))


def _fits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and 0 < x.numel() <= MOST_ROWS * x.shape[-1]
        and x.is_contiguous()
        and weight.is_contiguous()
    )
