"""Times the parts of a training step against padded rows of plain transformers in float32.

    python benchmarks/performance/training.py                                    # the demo's step on SmolLM2-135M: some minutes
    python benchmarks/performance/training.py --model FOLDER --tasks 6 --prompt 400 --reply 100 --train top:6     # a larger model
    python benchmarks/performance/training.py --model tiny --tasks 2 --rollouts 2     # seconds; the bounds hold for the default size

A step has --tasks groups of --rollouts rollouts. The rollouts of a group share their prompt. Each turn adds --reply sampled and
--observation observed tokens, which are English text. The plain step pads one row per rollout, computes the logits of all tokens, and
takes an AdamW step. The modes take turns, with steps so small that all see the same weights. Seconds are CPU seconds of one thread. Other
load on the machine changes them little.

`decoder` is the forward pass below the head. `head` is the head with log-probabilities and entropies. It includes the head's backward pass
in the trainer, whose head is frozen. `gradient differs` compares all gradients of two rollouts with padded rows in float64, as a part of
their norm.

The trainer runs in float32, and in bfloat16 where this machine is faster in it.

The second table has a step with a reference and two minibatches, so three passes over each token. It compares frozen layers that are
computed in each pass with states that are kept, in the last of the number types.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bounds import Report, finish, in_turn, worthwhile_dtypes
from forest import rollouts
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentlightning.config.models import find_model
from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.rl.batch.packs import leaf_rows
from agentlightning.rl.loss import PPOClip
from agentlightning_torch.forward import Scores, group_rows
from agentlightning_torch.frozen import FrozenStates
from agentlightning_torch.optim import Optimizer, trained_parameters
from agentlightning_torch.scoring import Scoring
from agentlightning_torch.update import Update
from agentlightning_torch.weights import no_bars

PLAIN = "padded rows of transformers, float32"
FASTER = {"float32": 2.0, "bfloat16": 3.5}
"""Minimum ratio of the plain step's time to the trainer's, by number type."""
EXACT = {"float32": 1e-4, "bfloat16": 0.05}
"""Maximum difference of the gradient, by number type."""
KEPT = 1.1
"""Minimum ratio of the time with recomputed frozen layers to that with kept states."""
ROW_TOKENS = 1024
"""Maximum number of padded tokens in a pass of the plain step."""
LR = 1e-12
PARTS = ("decoder", "head", "backward", "optimizer")


@dataclass
class Clock:
    """Seconds of the parts of a step."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.thread_time()
        yield
        self.seconds[name] += time.thread_time() - started

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class Bench:
    """A model in one number type that takes steps of the trainer, or plain ones."""

    def __init__(self, path: str, train: str, dtype: torch.dtype) -> None:
        with no_bars():
            self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa").eval()
        self.parameters = trained_parameters(self.model, train)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Return the gradients in float64, and forget them."""
        gradients = {name: p.grad.double() for name, p in self.parameters.items() if p.grad is not None}
        for parameter in self.parameters.values():
            parameter.grad = None
        return gradients

    @contextmanager
    def timed_decoder(self, clock: Clock) -> Iterator[None]:
        """Move the decoder's forward pass from the part `head` to the part `decoder`."""
        starts: list[float] = []

        def stop(*_: Any) -> None:
            took = time.thread_time() - starts.pop()
            clock.seconds["decoder"] += took
            clock.seconds["head"] -= took

        decoder = self.model.get_decoder()
        hooks = [
            decoder.register_forward_pre_hook(lambda *_: starts.append(time.thread_time())),
            decoder.register_forward_hook(stop),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def plain(self, batch: Batch, step: Callable[[], None], clock: Clock) -> None:
        """Take a step on padded rows. The loss is PPO's before the first optimizer step, where the ratio is 1."""
        for rows in group_rows(leaf_rows(batch), ROW_TOKENS):
            longest = max(map(len, rows))
            ids, mask = np.zeros((2, len(rows), longest), np.int64)
            factor = np.zeros((len(rows), longest))
            for number, row in enumerate(rows):
                ids[number, : len(row)], mask[number, : len(row)] = batch.token_ids[row.index], 1
                factor[number, : len(row)] = np.where(row.trained, (batch.weight * batch.advantage)[row.index], 0)
            tokens = torch.from_numpy(ids)
            with self.timed_decoder(clock), clock.part("head"):
                logits = self.model(input_ids=tokens, attention_mask=torch.from_numpy(mask), use_cache=False).logits[:, :-1]
                logprobs = logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
                loss = -(torch.from_numpy(factor[:, 1:]).to(logprobs) * logprobs).sum()
            with clock.part("backward"):
                loss.backward()
        with clock.part("optimizer"):
            step()

    def trainer(self, batch: Batch, loss: LossSettings, tokens_per_pack: int, step: Callable[[], Any], clock: Clock, keep: bool) -> None:
        """Take a step as the trainer does, on a forest."""

        def score(chosen: Sequence[int] | None, entropy: bool) -> Iterator[tuple[Scores, int]]:
            packs = Scoring().scores(self.model, batch, tokens_per_pack, chosen, entropy=entropy, frozen=frozen)
            while True:
                with self.timed_decoder(clock), clock.part("head"):
                    pack = next(packs, None)
                if pack is None:
                    return
                started = time.thread_time()
                yield pack
                clock.seconds["backward"] += time.thread_time() - started

        update = Update(batch, loss, score, nullcontext)
        frozen = FrozenStates(self.model, len(batch)) if keep and update.repeats else None
        update.prepare()
        for _ in range(loss.epochs):
            for part in range(len(update.parts)):
                update.gradient(part)
                with clock.part("optimizer"):
                    step()
                update.norms.append(0.0)


def english(tokenizer: Any) -> NDArray[np.int64]:
    """Return the token ids of this repository's documents."""
    folder = Path(__file__).resolve().parents[2]
    text = "\n".join(path.read_text() for path in sorted([*folder.glob("*.md"), *folder.glob("docs/*.md")]))
    return np.asarray(tokenizer.encode(text, add_special_tokens=False, verbose=False), np.int64)


def differs(gradients: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Return the norm of the difference of all gradients, as a part of the norm of the exact ones."""
    difference = sum(float((gradients[name] - value).square().sum()) for name, value in exact.items())
    return (difference / sum(float(value.square().sum()) for value in exact.values())) ** 0.5


def errors(path: str, options: argparse.Namespace, batch: Batch) -> dict[str, float]:
    """Return the difference of each mode's gradient from float64."""
    exact = Bench(path, options.train, torch.float64)
    exact.plain(batch, lambda: None, Clock())
    expected = exact.gradients()
    differences: dict[str, float] = {}
    for name in (PLAIN, *options.dtypes):
        bench = Bench(path, options.train, getattr(torch, "float32" if name == PLAIN else name))
        if name == PLAIN:
            bench.plain(batch, lambda: None, Clock())
        else:
            bench.trainer(batch, PPOClip(), options.tokens_per_pack, lambda: None, Clock(), keep=False)
        differences[name] = differs(bench.gradients(), expected)
    return differences


def take_turns(runs: dict[str, Callable[[Clock], None]], repeat: int) -> dict[str, list[Clock]]:
    """Time all runs in turn. The first round is not counted."""
    clocks: dict[str, list[Clock]] = {name: [] for name in runs}
    for name, counts in in_turn(runs, repeat):
        runs[name](clock := Clock())
        if counts:
            clocks[name].append(clock)
    return clocks


def single(path: str, options: argparse.Namespace, batch: Batch, gradients: dict[str, float]) -> list[str]:
    """Measure a step of one pass over each token. Return the missed bounds."""

    def run(name: str) -> Callable[[Clock], None]:
        bench = Bench(path, options.train, getattr(torch, "float32" if name == PLAIN else name))
        if name == PLAIN:
            adam = torch.optim.AdamW(bench.parameters.values(), lr=LR)

            def step() -> None:
                adam.step()
                adam.zero_grad()

            return lambda clock: bench.plain(batch, step, clock)
        optimizer = Optimizer(bench.parameters, lr=LR, clip_norm=1.0)
        return lambda clock: bench.trainer(batch, PPOClip(), options.tokens_per_pack, lambda: optimizer.step(LR), clock, keep=True)

    clocks = take_turns({name: run(name) for name in (PLAIN, *options.dtypes)}, options.repeat)
    shape = f"{options.tasks} x {options.rollouts} rollouts x {options.turns} turns, {options.prompt} shared tokens"
    tokens = f"{len(batch):,} tokens, {batch.trained_tokens:,} trained"
    table = Report(
        f"{options.model}, {shape}, {options.reply} + {options.observation} new ones a turn, {options.train}: {tokens}",
        (*PARTS, "fastest", "median", "gradient differs"),
    )
    fastest = {name: min(runs, key=lambda clock: clock.total) for name, runs in clocks.items()}
    for name, clock in fastest.items():
        table.add(
            name if name == PLAIN else f"trainer, {name}",
            *(f"{clock.seconds[part]:.2f} s" for part in PARTS),
            f"{clock.total:.2f} s",
            f"{statistics.median(clock.total for clock in clocks[name]):.2f} s",
            f"{gradients[name]:.0e}",
            ratio=fastest[PLAIN].total / clock.total,
            least=FASTER.get(name),
        )
    table.missed += [
        f"trainer, {name}: its gradient differs by {gradients[name]:.1e}; at most {EXACT[name]:g} is wanted"
        for name in options.dtypes
        if gradients[name] > EXACT[name]
    ]
    return table.show()


def several(path: str, options: argparse.Namespace, batch: Batch) -> list[str]:
    """Measure a step of three passes over each token. Return the missed bounds."""
    loss = PPOClip(kl_coef=0.1, minibatches=2)
    dtype = options.dtypes[-1]
    bench = Bench(path, options.train, getattr(torch, dtype))
    optimizer = Optimizer(bench.parameters, lr=LR, clip_norm=1.0)

    def run(keep: bool) -> Callable[[Clock], None]:
        return lambda clock: bench.trainer(batch, loss, options.tokens_per_pack, lambda: optimizer.step(LR), clock, keep=keep)

    names = {"frozen layers in each pass": False, "states of frozen layers kept": True}
    clocks = take_turns({name: run(keep) for name, keep in names.items()}, options.repeat)
    table = Report(f"{dtype}, reference, 2 minibatches", (*PARTS, "fastest", "median"))
    fastest = {name: min(runs, key=lambda clock: clock.total) for name, runs in clocks.items()}
    recomputed = fastest["frozen layers in each pass"].total
    for name, clock in fastest.items():
        table.add(
            name,
            *(f"{clock.seconds[part]:.2f} s" for part in PARTS),
            f"{clock.total:.2f} s",
            f"{statistics.median(clock.total for clock in clocks[name]):.2f} s",
            ratio=recomputed / clock.total,
            least=KEPT if names[name] and options.train != "full" else None,
        )
    return table.show()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a name that `agl models` knows, a folder, or `tiny`")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts of each task")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=200, help="prompt tokens that the rollouts of a task share")
    parser.add_argument("--reply", type=int, default=30, help="tokens sampled per turn")
    parser.add_argument("--observation", type=int, default=20, help="tokens added between turns")
    parser.add_argument("--tokens-per-pack", type=int, default=4096, help="maximum tokens per pack of the trainer")
    parser.add_argument("--train", default="top:10", help="full or top:N")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(FASTER), help="number types of the trainer")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the timed one
    with tempfile.TemporaryDirectory() as folder:
        if options.model == "tiny":
            from agentlightning_torch.testing import tiny_model

            path, options.train = tiny_model(folder, layers=3).path, "top:1"
        else:
            path = find_model(options.model).path
        options.dtypes = options.dtypes or worthwhile_dtypes(path)
        text = english(AutoTokenizer.from_pretrained(path))

        def batch(tasks: int, count: int) -> Batch:
            return rollouts(count, options.turns, options.prompt, options.reply, options.observation, 0, tasks, text)

        gradients = errors(path, options, batch(1, 2))
        large = batch(options.tasks, options.rollouts)
        missed = single(path, options, large, gradients) + several(path, options, large)
    finish(missed)


if __name__ == "__main__":
    main()
