"""Measures how work grows if a batch has twice as many groups: attention, gradient, conversion, and cutting into packs.

    python benchmarks/performance/attention.py                      # 16 and 32 groups of 4 rollouts x 4 turns, CPU
    python benchmarks/performance/attention.py --groups 2 --prompt 32    # smaller; the bound holds for the default size

Groups share nothing, so twice as many should take twice the work. A mask over all tokens of a pack would take four times. The attention
measurement puts all groups into one pack. The gradient uses packs, as in training. Seconds are CPU seconds of this thread. For comparison,
a dense mask is timed with a quarter of the groups and no bound. Conversion and cutting are cheap, so they use sixteen times as many groups.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from bounds import Report, finish, take_turns
from conversion import Shape, convert, trajectories
from transformers import AutoModelForCausalLM

from agentlightning.contracts.batch import Batch
from agentlightning.rl.batch.packs import cut_packs
from agentlightning_torch.attention import Visible, forest_attention, forest_pass
from agentlightning_torch.forward import score_forest
from agentlightning_torch.testing import tiny_model
from agentlightning_torch.weights import no_bars

MOST = 2.2
"""Maximum ratio of the work for twice the groups."""
GROUP, TURNS, REPLY, OBSERVATION = 4, 4, 20, 20
MANY = 16
HEADS, SIZE = 4, 16


def attention(pack: Any, dense: bool) -> Callable[[], None]:
    """Forward and backward."""
    visible = Visible(pack, torch.device("cpu"), parts=not dense)
    visible.under(None)  # made once for all layers, so it is not timed
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, HEADS, len(pack), SIZE, generator=generator).requires_grad_() for _ in range(3))

    def run() -> None:
        with forest_pass(visible):
            forest_attention(None, query, key, value, None)[0].sum().backward()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=16, help="number of groups; compared with twice as many")
    parser.add_argument("--prompt", type=int, default=256, help="prompt tokens that a group shares")
    parser.add_argument("--tokens-per-pack", type=int, default=4096, help="of a pack")
    parser.add_argument("--repeat", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the timed function
    with tempfile.TemporaryDirectory() as folder, no_bars():
        model = AutoModelForCausalLM.from_pretrained(tiny_model(folder, context=8192).path).eval()

    def gradient(batch: Batch) -> None:
        for pack in cut_packs(batch, options.tokens_per_pack):
            score_forest(model, batch, pack).logprob.sum().backward()

    def runs(groups: int) -> dict[str, Callable[[], Any]]:
        shape = Shape(
            rollouts=groups * GROUP, turns=TURNS, prompt=options.prompt, reply=REPLY, observation=OBSERVATION, group=GROUP, vocabulary=50
        )
        rollouts, many = trajectories(shape), trajectories(replace(shape, rollouts=MANY * groups * GROUP))
        batch, large = convert(rollouts), convert(many)
        (pack,) = cut_packs(batch, 10**9)
        return {
            "attention": attention(pack, dense=False),
            "attention under a dense mask (a quarter)": attention(
                cut_packs(convert(rollouts[: max(1, groups // 4) * GROUP]), 10**9)[0], dense=True
            ),
            "gradient": lambda: gradient(batch),
            "conversion": lambda: convert(many),
            "cutting into packs": lambda: cut_packs(large, options.tokens_per_pack),
        }

    pairs = {groups: runs(groups) for groups in (options.groups, 2 * options.groups)}
    named = {f"{name}, {groups} groups": run for groups, variants in pairs.items() for name, run in variants.items()}
    seconds = take_turns(named, options.repeat)
    report = Report("seconds for twice the groups", (f"{options.groups} groups", f"{2 * options.groups} groups"))
    for name in pairs[options.groups]:
        small, large = (min(seconds[f"{name}, {groups} groups"]) for groups in pairs)
        report.add(name, f"{1e3 * small:.1f} ms", f"{1e3 * large:.1f} ms", ratio=large / small, most=None if "dense" in name else MOST)
    finish(report.show())


if __name__ == "__main__":
    main()
